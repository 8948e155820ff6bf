"""The belt seen from above, running along x: material, weave, grime, scratches, seams, stains and the side rails.

Pictures are float32 [H,W,3] BGR, 0..255, display (gamma) values.
"""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np

from runtime.conveyor import noise

# kind: (base colours BGR, weave, contrast of the weave, contrast of the grain)
BELTS: dict[str, tuple[tuple[tuple[int, int, int], ...], str, float, float]] = {
    "rubber": (((46, 44, 43), (58, 57, 55), (36, 36, 38)), "diamond", 5.0, 5.5),
    "pvc": (((82, 112, 52), (70, 92, 34), (128, 96, 48), (96, 126, 84)), "plain", 2.2, 1.6),
    "fabric": (((132, 132, 128), (112, 116, 118), (150, 154, 156)), "cloth", 9.0, 4.0),
    "twill": (((84, 84, 82), (104, 108, 112), (66, 70, 76)), "twill", 7.0, 3.5),
}


@cache
def weave_tile(weave: str) -> np.ndarray:
    """Periodic relief of a belt's surface: [STORED, STORED] float32 with period TILE, about -1..1."""
    return noise.repeat(_weave_period(weave).astype(np.float32))


def _weave_period(weave: str) -> np.ndarray:
    y, x = np.mgrid[0 : noise.TILE, 0 : noise.TILE].astype(np.float32)
    turn = np.float32(2 * np.pi / noise.TILE)
    if weave == "diamond":
        return np.clip(2.5 * (np.cos((x + y) * turn * 32) + np.cos((x - y) * turn * 32)) - 2.2, -1.0, 1.0)
    if weave == "cloth":  # threads over and under each other, 8 px apart
        over = ((x // 8 + y // 8) % 2) > 0
        return np.where(over, np.abs(np.sin(y * turn * 32)), np.abs(np.sin(x * turn * 32)) * 0.8) * 2.0 - 1.0
    if weave == "twill":
        return np.sin((x + 2 * y) * turn * 40) * (0.7 + 0.3 * np.sin(y * turn * 128))
    return 0.5 * np.sin(x * turn * 64) * np.sin(y * turn * 64)


def render_belt(rng: np.random.Generator, size_hw: tuple[int, int]) -> tuple[np.ndarray, float]:
    """Draws a stretch of belt. Returns the picture [H,W,3] and its brightness 0..1 (what metal mirrors of it)."""
    height, width = size_hw
    colours, weave, contrast, grain = BELTS[str(rng.choice(list(BELTS)))]
    base = np.array(colours[int(rng.integers(len(colours)))], np.float32) * rng.uniform(0.85, 1.15)
    level = _texture(rng, weave, contrast * rng.uniform(0.5, 1.2), height, width)
    level += noise.sample(noise.grain_noise(), rng, height, width) * np.float32(grain * rng.uniform(0.6, 1.3))
    level += noise.sample(noise.cloud_noise(), rng, height, width) * np.float32(rng.uniform(0.8, 3.2))
    level += noise.sample(noise.streak_noise(), rng, height, width) * np.float32(rng.uniform(0.5, 4.0))
    specks = noise.sample(noise.grain_noise(), rng, height, width) > rng.uniform(2.8, 4.2)
    level += specks * np.float32(rng.uniform(10, 45))
    level += _marks(rng, height, width)
    factor = level * np.float32(1.0 / 110.0) + np.float32(1.0)
    belt = cv2.merge([factor * base[0], factor * base[1], factor * base[2]])
    if rng.random() < 0.25:
        _draw_seam(rng, belt, rng.uniform(0.1, 0.9) * width)
    if rng.random() < 0.2:
        _draw_rail(rng, belt, bool(rng.random() < 0.5))
    return belt, float(base.mean() / 255.0)


def _texture(rng: np.random.Generator, weave: str, contrast: float, height: int, width: int) -> np.ndarray:
    zoom = rng.uniform(0.7, 1.5)
    part = noise.sample(weave_tile(weave), rng, int(height / zoom) + 2, int(width / zoom) + 2)
    return cv2.resize(np.ascontiguousarray(part), (width, height), interpolation=cv2.INTER_LINEAR) * np.float32(
        contrast
    )


def _marks(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Scratches along the belt and dark stains: float32 [H,W] to add to the brightness; denser on a longer belt."""
    area = height * width / (480 * 640)
    scratches = np.zeros((height, width), np.uint8)
    for _ in range(int(rng.poisson(5 * area))):
        start = rng.uniform((0, 0), (width, height))
        run = rng.normal(0, 1, size=2) * (90, 10)
        bend = rng.normal(0, 6, size=2)
        points = np.round(np.stack([start, start + run * 0.5 + bend, start + run]) * 16).astype(np.int32)
        cv2.polylines(scratches, [points], False, int(rng.integers(60, 255)), 1, cv2.LINE_AA, 4)
    marks = scratches.astype(np.float32) * np.float32(rng.uniform(0.04, 0.14))
    small = np.zeros((height // 4 + 1, width // 4 + 1), np.float32)
    for _ in range(int(rng.poisson(1.5 * area))):
        centre = rng.uniform((0, 0), (width / 4, height / 4)).astype(int)
        axes = rng.uniform(3, 18, size=2).astype(int)
        cv2.ellipse(small, centre.tolist(), axes.tolist(), rng.uniform(0, 180), 0, 360, rng.uniform(8, 34), -1)
    stains = cv2.resize(cv2.GaussianBlur(small, (0, 0), 2.5), (width, height))
    if rng.random() < 0.5:
        stains = stains * np.clip(1.0 + 0.5 * noise.sample(noise.cloud_noise(), rng, height, width), 0.2, 2.0)
    return marks - stains


def _draw_seam(rng: np.random.Generator, belt: np.ndarray, x: float) -> None:
    """The joint of the belt's ends: a slanted dark groove with a light lip, sometimes with metal fasteners."""
    height = belt.shape[0]
    lean = rng.uniform(-0.25, 0.25) * height
    width = int(rng.integers(2, 5))
    groove = np.zeros(belt.shape[:2], np.uint8)
    top, bottom = (int(x), -2), (int(x + lean), height + 2)
    cv2.line(groove, top, bottom, 255, width, cv2.LINE_AA)
    lip = np.zeros_like(groove)
    cv2.line(lip, (top[0] + width, top[1]), (bottom[0] + width, bottom[1]), 255, 1, cv2.LINE_AA)
    belt *= (1.0 - groove * np.float32(rng.uniform(0.3, 0.6) / 255))[:, :, None]
    belt += (lip * np.float32(rng.uniform(8, 30) / 255))[:, :, None]
    if rng.random() < 0.4:
        step = int(rng.integers(16, 28))
        for y in range(step // 2, height, step):
            centre = x + lean * y / height
            corner = (int(centre - step * 0.45), y - step // 4), (int(centre + step * 0.45), y + step // 4)
            shadow = (corner[0][0] + 2, corner[0][1] + 2), (corner[1][0] + 2, corner[1][1] + 2)
            cv2.rectangle(belt, *shadow, (20, 20, 20), -1)
            cv2.rectangle(belt, *corner, (128, 130, 130), -1)
            cv2.rectangle(belt, *corner, (165, 168, 168), 1)


def _draw_rail(rng: np.random.Generator, belt: np.ndarray, at_top: bool) -> None:
    """The machine's aluminium side rail at the upper or lower border, with the shadow gap beside the belt."""
    height, width = belt.shape[:2]
    rail, gap = int(rng.integers(10, 34)), int(rng.integers(4, 9))
    profile = rng.uniform(120, 185) + 22 * np.sin(np.linspace(0, rng.uniform(2, 5), rail, dtype=np.float32))
    lines = noise.sample(noise.brushed_noise(), rng, rail, width) * np.float32(5.0)
    strip = (profile[:, None].astype(np.float32) + lines)[:, :, None] * np.array([1.0, 0.99, 0.97], np.float32)
    fade = np.concatenate([np.full(gap, 0.22), np.linspace(0.5, 1.0, 14)]).astype(np.float32)
    if at_top:
        belt[:rail] = strip
        belt[rail : rail + len(fade)] *= fade[:, None, None]
    else:
        belt[height - rail :] = strip[::-1]
        belt[height - rail - len(fade) : height - rail] *= fade[::-1, None, None]
