"""What a part's builder returns, and the small geometry the builders share.

Glossary: h, w patch sides in supersampled px (SUPERSAMPLE per image px); rho distance from the patch centre, px.
Every builder works in the part's own frame (long axis along x); the scene turns the shaded patch afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

SUPERSAMPLE = 2
MARGIN = 6  # empty supersampled px around a part, so that turning the patch cuts nothing off


@dataclass(frozen=True)
class PartShape:
    """One part as a relief seen from above.

    height: float32 [h,w], supersampled px above the belt (only differences matter for the shading).
    mask: uint8 [h,w], 255 on the part, 0 elsewhere (holes too).
    thickness: the height that casts the shadow, supersampled px.
    second: uint8 [h,w] mask of the places made of the part's second material (cage, seal, insert), or None.
    second_materials: what the second material may be (names in shading.MATERIALS).
    gain: float32 [h,w] factor on the light (engraving, dirt in a thread, the dark wall of a bore), or None.
    turned: True when faces were turned on a lathe (rings around the patch centre), False for lines along x.
    """

    height: np.ndarray
    mask: np.ndarray
    thickness: float
    second: np.ndarray | None = None
    gain: np.ndarray | None = None
    turned: bool = False
    second_materials: tuple[str, ...] = ("steel",)


def centred_grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """x as float32 [1,w] and y as float32 [h,1], px from the patch centre; they broadcast to [h,w]."""
    x = np.arange(width, dtype=np.float32) - np.float32((width - 1) / 2)
    y = np.arange(height, dtype=np.float32) - np.float32((height - 1) / 2)
    return x[None, :], y[:, None]


def round_patch(diameter: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Grid for a part that is round from above: x [1,w], y [h,1], rho [h,w]."""
    side = int(np.ceil(diameter)) + 2 * MARGIN
    x, y = centred_grid(side, side)
    return x, y, np.sqrt(x * x + y * y)


def as_mask(inside: np.ndarray) -> np.ndarray:
    """bool [h,w] -> uint8 [h,w] of 0 and 255."""
    return inside.astype(np.uint8) * np.uint8(255)


def smoothstep(value: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 at low, 1 at high, smooth between; low > high turns it round."""
    t = np.clip((value - low) / (high - low), 0.0, 1.0)
    return (t * t * (3.0 - 2.0 * t)).astype(np.float32)


def bevelled(mask: np.ndarray, thickness: float, bevel: float) -> np.ndarray:
    """Height of a plate with rounded edges: float32 [h,w], `thickness` inside, less by `bevel` at every edge."""
    distance = cv2.distanceTransform(mask, cv2.DIST_L2, 3)
    edge = 1.0 - np.minimum(distance / np.float32(bevel), 1.0)
    return np.where(mask > 0, thickness - bevel * edge * edge, 0.0).astype(np.float32)


def hexagon_distance(x: np.ndarray, y: np.ndarray, sides: int = 6) -> np.ndarray:
    """Largest distance along the normals of the flats: below s/2 in a regular (even) polygon, s across the flats."""
    out = np.abs(x) + np.float32(0.0) * y  # the first pair of flats; [h,w]
    for k in range(1, sides // 2):
        angle = np.pi * 2 * k / sides
        distance = np.abs(x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle)))
        out = np.maximum(out, distance)
    return out


def bore(
    rng: np.random.Generator, x: np.ndarray, y: np.ndarray, radius: float, depth: float, pitch: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A through hole seen a little from the side, so that part of its threaded wall shows.

    Returns open (bool, the belt is seen), wall (bool, the hole's wall is seen) and the wall's gain float32, all [h,w].
    """
    angle, lean = rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.2) * depth
    top = np.sqrt(x * x + y * y)
    bottom = np.sqrt((x - lean * np.cos(angle)) ** 2 + (y - lean * np.sin(angle)) ** 2)
    opening = (top < radius) & (bottom < radius * 0.97)
    wall = (top < radius) & ~opening
    stripes = np.sin((bottom - radius) * np.float32(2 * np.pi * depth / max(lean, 1.0) / max(pitch, 2.0) * 0.5))
    gain = (0.42 + 0.22 * stripes).astype(np.float32)
    return opening, wall, gain
