"""Light and metal: normals from a part's relief look up what they mirror in a small map of the surroundings.

One environment per scene holds softboxes and lamp tubes above a dim hall; three degrees of blur of it (rough, satin,
polished) are mixed by the material. This gives metal its look at the price of one cv2.remap.
Glossary: h, w patch sides, supersampled px; N side of the environment map. x right, y down, z to the camera.
Ref: Sloan et al. 2001, "The Lit Sphere"; Kajiya 1985 and Ward 1992 for the anisotropic highlight of turned faces.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from runtime.conveyor import noise
from runtime.conveyor.shapes import PartShape, centred_grid

ENVIRONMENT_SIDE = 128


@dataclass(frozen=True)
class Lighting:
    """The light of one scene.

    environment: float32 [N,N,3], radiance by normal (nx, ny in -1..1) for rough, satin and polished surfaces.
    towards: unit vector in the picture plane from a part to the key light (x, y).
    shadow_slope: length of the shadow per unit of height. shadow_strength, shadow_softness: 0..1 and a factor.
    """

    environment: np.ndarray
    towards: tuple[float, float]
    shadow_slope: float
    shadow_strength: float
    shadow_softness: float


@dataclass(frozen=True)
class Material:
    """How a surface answers the light.

    mix: float32 [3,3], BGR rows times (rough, satin, polished) columns. brushed: strength of the finish's lines.
    mottled: strength of blotches (cast, galvanised, oily).
    """

    mix: np.ndarray
    brushed: float
    mottled: float


def sample_lighting(rng: np.random.Generator, floor: float) -> Lighting:
    """A random hall: key softbox, lamp tubes, dim dome; `floor` 0..1 is the brightness of the belt below."""
    ramp = np.linspace(-1.0, 1.0, ENVIRONMENT_SIDE, dtype=np.float32)
    normal_x, normal_y = np.meshgrid(ramp, ramp)
    normal_z = np.sqrt(np.maximum(1.0 - normal_x**2 - normal_y**2, 0.0))
    mirror_x, mirror_y, mirror_z = 2 * normal_z * normal_x, 2 * normal_z * normal_y, 2 * normal_z**2 - 1

    angle, lean = rng.uniform(0, 2 * np.pi), rng.uniform(0.35, 0.75)
    towards = (float(np.cos(angle)), float(np.sin(angle)))
    light = rng.uniform(0.25, 0.42) + 0.2 * mirror_z + 0.16 * (mirror_x * towards[0] + mirror_y * towards[1])
    key = _softbox(mirror_x, mirror_y, (lean * towards[0], lean * towards[1]), rng.uniform(0, np.pi),
                   rng.uniform(0.16, 0.4), rng.uniform(0.16, 0.4))  # fmt: skip
    light = light + rng.uniform(1.6, 2.8) * key
    direction = rng.uniform(0, np.pi)
    for _ in range(int(rng.integers(1, 4))):  # lamp tubes, all hung the same way
        centre = tuple(rng.uniform(-0.8, 0.8, size=2))
        light = light + rng.uniform(0.6, 1.6) * _softbox(mirror_x, mirror_y, centre, direction, 0.9, 0.06)
    light = light - 0.2 * np.exp(-(mirror_x**2 + mirror_y**2) / 0.02)  # the camera mirrors itself as a dark spot
    below = 0.05 + 0.35 * floor
    horizon = np.clip((mirror_z + 0.15) / 0.3, 0.0, 1.0)
    light = (below * (1 - horizon) + np.maximum(light, 0.02) * horizon).astype(np.float32)

    blurred = [_blur_coarsely(light, 17.0, 8), _blur_coarsely(light, 5.0, 2), _blur_coarsely(light, 1.3, 1)]
    return Lighting(
        environment=np.dstack(blurred),
        towards=towards,
        shadow_slope=float(rng.uniform(0.35, 1.15)),
        shadow_strength=float(rng.uniform(0.42, 0.72)),
        shadow_softness=float(rng.uniform(0.6, 1.5)),
    )


def _softbox(
    x: np.ndarray, y: np.ndarray, centre: tuple[float, float], angle: float, half_length: float, half_width: float
) -> np.ndarray:
    """1 inside a rectangle of the mirrored sky, soft at its border; float32 like x."""
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    u = (x - centre[0]) * cosine + (y - centre[1]) * sine
    v = (y - centre[1]) * cosine - (x - centre[0]) * sine
    edge = np.minimum(half_length - np.abs(u), half_width - np.abs(v))
    return np.clip(edge / 0.05 + 0.5, 0.0, 1.0)


def _blur_coarsely(light: np.ndarray, sigma: float, factor: int) -> np.ndarray:
    """Gaussian blur of the map, done `factor` times smaller."""
    side = ENVIRONMENT_SIDE // factor
    small = cv2.resize(light, (side, side), interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), sigma / factor, borderType=cv2.BORDER_REPLICATE)
    return cv2.resize(small, (ENVIRONMENT_SIDE, ENVIRONMENT_SIDE), interpolation=cv2.INTER_LINEAR)


# name: (tint in linear BGR, weights of rough / satin / polished, tinted highlights, brushed, mottled)
MATERIALS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float], bool, float, float]] = {
    "steel": ((0.64, 0.62, 0.60), (0.45, 0.35, 0.25), True, 0.10, 0.05),
    "dull steel": ((0.40, 0.40, 0.40), (0.65, 0.30, 0.05), True, 0.12, 0.12),
    "stainless": ((0.76, 0.76, 0.75), (0.25, 0.35, 0.45), True, 0.07, 0.03),
    "zinc": ((0.78, 0.74, 0.68), (0.45, 0.40, 0.20), True, 0.06, 0.08),
    "yellow zinc": ((0.30, 0.60, 0.74), (0.45, 0.35, 0.25), True, 0.06, 0.12),
    "galvanised": ((0.58, 0.57, 0.54), (0.75, 0.22, 0.03), True, 0.05, 0.22),
    "brass": ((0.20, 0.52, 0.78), (0.40, 0.35, 0.30), True, 0.08, 0.06),
    "copper": ((0.24, 0.38, 0.74), (0.45, 0.35, 0.25), True, 0.08, 0.08),
    "black oxide": ((0.055, 0.05, 0.05), (0.60, 0.50, 0.30), False, 0.06, 0.10),
    "white plastic": ((0.62, 0.68, 0.70), (0.95, 0.10, 0.05), False, 0.01, 0.02),
    "black rubber": ((0.03, 0.03, 0.03), (0.80, 0.25, 0.03), False, 0.01, 0.05),
    "red rubber": ((0.03, 0.05, 0.30), (0.85, 0.20, 0.05), False, 0.01, 0.05),
    "blue plastic": ((0.50, 0.22, 0.05), (0.90, 0.15, 0.10), False, 0.01, 0.03),
}


def sample_material(rng: np.random.Generator, name: str) -> Material:
    """The named material with a few per cent of variation from part to part."""
    tint, weights, tinted, brushed, mottled = MATERIALS[name]
    colour = np.array(tint) * rng.uniform(0.85, 1.12) * rng.uniform(0.96, 1.04, size=3)
    weight = np.array(weights) * rng.uniform(0.8, 1.2, size=3)
    mix = colour[:, None] * weight[None, :]
    if not tinted:  # varnish, oxide and plastic mirror in white
        mix[:, 1:] = 0.14 * weight[None, 1:]
    return Material(mix.astype(np.float32), brushed * rng.uniform(0.5, 1.6), mottled * rng.uniform(0.5, 1.6))


def shade(
    rng: np.random.Generator, shape: PartShape, main: Material, second: Material, lighting: Lighting, angle: float
) -> np.ndarray:
    """Colours a part that will be turned by `angle` (radians, x towards y): uint8 [h,w,4], premultiplied BGRA."""
    slope_x = cv2.Sobel(shape.height, cv2.CV_32F, 1, 0, ksize=3, scale=0.125)
    slope_y = cv2.Sobel(shape.height, cv2.CV_32F, 0, 1, ksize=3, scale=0.125)
    slope_x, slope_y, glow = _finish(rng, shape, main, lighting, angle, slope_x, slope_y)
    shrink = -1.0 / np.sqrt(1.0 + slope_x * slope_x + slope_y * slope_y)
    normal_x, normal_y = slope_x * shrink, slope_y * shrink
    # the relief's own frame -> the picture's, then to the map's px
    half = np.float32((ENVIRONMENT_SIDE - 1) / 2)
    cosine, sine = np.float32(np.cos(angle) * half), np.float32(np.sin(angle) * half)
    map_x = normal_x * cosine - normal_y * sine + half
    map_y = normal_x * sine + normal_y * cosine + half
    seen = cv2.remap(lighting.environment, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)

    colour = cv2.transform(seen, main.mix)
    if shape.second is not None:
        cv2.copyTo(cv2.transform(seen, second.mix), shape.second, colour)
    glow *= _occlusion(shape.height)
    if shape.gain is not None:
        glow *= shape.gain
    colour = cv2.sqrt(cv2.multiply(colour, cv2.merge([glow, glow, glow]), scale=255.0**2))  # display gamma 2
    pixels = cv2.bitwise_and(cv2.convertScaleAbs(colour), cv2.merge([shape.mask, shape.mask, shape.mask]))
    return cv2.merge([*cv2.split(pixels), shape.mask])


def _finish(
    rng: np.random.Generator,
    shape: PartShape,
    material: Material,
    lighting: Lighting,
    angle: float,
    slope_x: np.ndarray,
    slope_y: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Roughens the slopes by the tool's marks and tilts the part a little; returns slopes and a brightness factor."""
    height, width = shape.mask.shape
    blotches = noise.sample(noise.cloud_noise(), rng, height, width)
    glow = 1.0 + np.float32(material.mottled) * blotches
    tilt_x, tilt_y = rng.normal(0.0, 0.045, size=2).astype(np.float32)
    if shape.turned:
        x, y = centred_grid(height, width)
        rho = np.sqrt(x * x + y * y) + np.float32(1.0)
        marks = noise.white_noise()[int(rng.integers(noise.TILE))]
        ring = marks[(rho * 0.8).astype(np.int32) & (noise.TILE - 1)] * np.float32(material.brushed * 0.6)
        radial_x, radial_y = x / rho, y / rho
        slope_x = slope_x + ring * radial_x + tilt_x
        slope_y = slope_y + ring * radial_y + tilt_y
        # a turned face shines in two fans where its radius points to the light
        light_x = np.float32(np.cos(angle) * lighting.towards[0] + np.sin(angle) * lighting.towards[1])
        light_y = np.float32(np.cos(angle) * lighting.towards[1] - np.sin(angle) * lighting.towards[0])
        fan = (radial_x * light_x + radial_y * light_y) ** 2
        glow += np.float32(material.brushed * 6.0) * (fan * fan - np.float32(0.3))
    else:
        lines = noise.sample(noise.brushed_noise(), rng, height, width) * np.float32(material.brushed * 0.5)
        slope_y = slope_y + lines + tilt_y
        slope_x = slope_x + tilt_x
        glow += 0.5 * lines
    return slope_x, slope_y, np.maximum(glow, np.float32(0.2))


def _occlusion(relief: np.ndarray) -> np.ndarray:
    """0..1: places lower than their surroundings see less of the sky; float32 like relief."""
    small = cv2.resize(relief, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    around = cv2.resize(cv2.GaussianBlur(small, (0, 0), 2.0), (relief.shape[1], relief.shape[0]))
    return np.clip(1.0 - (around - relief) * np.float32(0.03), 0.45, 1.08)
