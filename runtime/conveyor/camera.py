"""What the lamp over the belt and the camera add: uneven light, vignette, colour temperature, glare, blur and noise.

Frames are BGR [H,W,3], 0..255, display (gamma) values; float32 in, uint8 out.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from runtime.conveyor import noise


@dataclass(frozen=True)
class Camera:
    """One camera in one hall; the same for every frame of a clip.

    light: float32 [H,W,3], factor of lamp, vignette and white balance. glare: float32 [H,W,1] to add, or None.
    blur_x: length of the motion blur, px (1: none). focus: deviation of the defocus blur, px (0: none).
    noise_level: deviation of the sensor's noise in grey values.
    """

    light: np.ndarray
    glare: np.ndarray | None
    blur_x: int
    focus: float
    noise_level: float


def sample_camera(rng: np.random.Generator, size_hw: tuple[int, int]) -> Camera:
    """A random camera and lamp for frames of size_hw."""
    height, width = size_hw
    y, x = np.mgrid[-1:1:24j, -1:1:32j].astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    field = 1.0 + rng.uniform(0.02, 0.2) * (x * np.cos(angle) + y * np.sin(angle))
    spot = rng.uniform(-0.7, 0.7, size=2)
    field = field + rng.uniform(0.0, 0.22) * np.exp(-((x - spot[0]) ** 2 + (y - spot[1]) ** 2) / rng.uniform(0.3, 1.2))
    field = field * (1.0 - rng.uniform(0.0, 0.16) * (x * x + y * y)) * rng.uniform(0.82, 1.16)
    warmth = float(np.clip(rng.normal(0.0, 0.04), -0.09, 0.09))
    balance = np.array([1.0 - warmth, 1.0 + rng.normal(0.0, 0.012), 1.0 + warmth], np.float32)
    light = cv2.resize(field.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    return Camera(
        light=cv2.merge([light * balance[0], light * balance[1], light * balance[2]]),
        glare=_sample_glare(rng, size_hw) if rng.random() < 0.15 else None,
        blur_x=int(rng.choice([3, 5, 7])) if rng.random() < 0.3 else 1,
        focus=float(rng.uniform(0.4, 0.8)) if rng.random() < 0.5 else 0.0,
        noise_level=float(rng.uniform(0.8, 4.5)),
    )


def _sample_glare(rng: np.random.Generator, size_hw: tuple[int, int]) -> np.ndarray:
    """The soft reflection of a lamp on the belt or on the camera's window."""
    height, width = size_hw
    small = np.zeros((height // 8 + 1, width // 8 + 1), np.float32)
    centre = (rng.uniform(0, small.shape[1]), rng.uniform(0, small.shape[0]))
    axes = (rng.uniform(6, 22), rng.uniform(2, 6))
    cv2.ellipse(small, (centre, axes, rng.uniform(0, 180)), rng.uniform(25, 80), -1)
    return cv2.resize(cv2.GaussianBlur(small, (0, 0), 3.0), (width, height))[:, :, None]


def expose(rng: np.random.Generator, picture: np.ndarray, camera: Camera) -> np.ndarray:
    """float32 [H,W,3] scene -> the uint8 [H,W,3] frame the camera delivers; rng gives the frame's own noise."""
    height, width = picture.shape[:2]
    frame = cv2.multiply(picture, camera.light)
    if camera.glare is not None:
        frame += camera.glare * (1.0 - frame * np.float32(0.7 / 255))
    if camera.blur_x > 1:
        frame = cv2.blur(frame, (camera.blur_x, 1))
    if camera.focus > 0:
        frame = cv2.GaussianBlur(frame, (5, 5), camera.focus)
    grain = noise.sample(noise.sensor_noise(), rng, height, width)
    return cv2.addWeighted(frame, 1.0, grain, camera.noise_level, 0.0, dtype=cv2.CV_8U)
