"""Fixed, periodic noise textures that every picture samples at random offsets.

Drawing fresh noise for each pixel of each picture would cost more than the rest of the renderer. The tiles below are
made once per process from constant seeds, so they are constants, not state: a picture depends on (seed, index) only.
"""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np

TILE = 512  # period of every tile, px; a power of two so that wrapping is a mask
STORED = TILE + 1152  # side of the array kept per tile: every window up to 1152 px is then a view, not a gather


def wrap_blur(tile: np.ndarray, sigma_x: float, sigma_y: float) -> np.ndarray:
    """Gaussian blur that keeps a periodic tile periodic; [H,W] float32 in and out, mean 0 and deviation 1."""
    pad = int(3 * max(sigma_x, sigma_y)) + 2
    wide = cv2.copyMakeBorder(tile, pad, pad, pad, pad, cv2.BORDER_WRAP)
    blurred = cv2.GaussianBlur(wide, (0, 0), sigmaX=max(sigma_x, 0.01), sigmaY=max(sigma_y, 0.01))
    out = blurred[pad:-pad, pad:-pad]
    return np.ascontiguousarray((out - out.mean()) / out.std())


def repeat(tile: np.ndarray) -> np.ndarray:
    """The periodic [TILE, TILE, ...] tile continued to [STORED, STORED, ...]."""
    index = np.arange(STORED) & (TILE - 1)
    return np.ascontiguousarray(tile[index[:, None], index[None, :]])


def _white() -> np.ndarray:
    return np.random.default_rng(101).standard_normal((TILE, TILE), dtype=np.float32)


@cache
def white_noise() -> np.ndarray:
    """Standard normal. Every tile here: [STORED, STORED] float32 with period TILE, mean 0, deviation 1."""
    return repeat(_white())


@cache
def brushed_noise() -> np.ndarray:
    """Fine lines along x: the finish of rolled or brushed metal."""
    return repeat(wrap_blur(_white(), 16.0, 0.7))


@cache
def streak_noise() -> np.ndarray:
    """Long soft streaks along x: grime on a belt that always runs the same way."""
    return repeat(wrap_blur(_white(), 60.0, 2.5))


@cache
def cloud_noise() -> np.ndarray:
    """Smooth blotches on two scales."""
    coarse = wrap_blur(np.random.default_rng(102).standard_normal((TILE, TILE), dtype=np.float32), 24.0, 24.0)
    fine = wrap_blur(np.random.default_rng(103).standard_normal((TILE, TILE), dtype=np.float32), 7.0, 7.0)
    out = coarse + 0.5 * fine
    return repeat((out / out.std()).astype(np.float32))


@cache
def grain_noise() -> np.ndarray:
    """Noise of one or two pixels: cast surfaces and rubber."""
    return repeat(wrap_blur(_white(), 1.1, 1.1))


@cache
def sensor_noise() -> np.ndarray:
    """Camera noise: one part shared by the channels, one per channel. [STORED, STORED, 3], deviation about 1."""
    rng = np.random.default_rng(104)
    luma = rng.standard_normal((TILE, TILE, 1), dtype=np.float32)
    chroma = rng.standard_normal((TILE, TILE, 3), dtype=np.float32)
    return repeat(cv2.GaussianBlur(0.85 * luma + 0.5 * chroma, (0, 0), 0.45) * np.float32(1.25))


def sample(tile: np.ndarray, rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A height x width window of a tile at a random offset, wrapped around its border."""
    top, left = (int(v) for v in rng.integers(0, TILE, size=2))
    if top + height <= STORED and left + width <= STORED:
        return tile[top : top + height, left : left + width]
    rows = (np.arange(top, top + height)) & (TILE - 1)
    columns = (np.arange(left, left + width)) & (TILE - 1)
    return tile[rows[:, None], columns[None, :]]
