"""Composes belt, parts, shadows and camera into one picture with the boxes of what is visible.

Glossary: H, W frame sides, px; N annotated parts; L length of a strip of belt, px; h, w sides of a part's patch, px.
Boxes are xyxy float32 in image px, tight around a part's visible pixels (x2, y2 exclusive), clipped to the frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from runtime.conveyor import CLASS_NAMES
from runtime.conveyor.belt import render_belt
from runtime.conveyor.camera import expose, sample_camera
from runtime.conveyor.parts import PART_KINDS, choose_material
from runtime.conveyor.shading import Lighting, sample_lighting, sample_material, shade
from runtime.conveyor.shapes import SUPERSAMPLE, PartShape

MIN_VISIBLE = 0.35  # a part that shows less of itself is not annotated
FRAME_HW = (480, 640)
NOBODY = -1


@dataclass(frozen=True)
class Scene:
    """A picture and what is to be found in it.

    frame: uint8 [H,W,3] BGR. boxes_xyxy: float32 [N,4]. labels: int64 [N], index into CLASS_NAMES.
    visible: float32 [N], the share of the part that is seen, 0.35 to 1. part_ids: int64 [N], which part of the strip.
    """

    frame: np.ndarray
    boxes_xyxy: np.ndarray
    labels: np.ndarray
    visible: np.ndarray
    part_ids: np.ndarray


@dataclass(frozen=True)
class Strip:
    """A stretch of belt with parts on it, before the camera.

    picture: float32 [H,L,3]. owner: int16 [H,L], the part seen at a pixel or NOBODY.
    labels: int64 [P] class of every part. areas: int64 [P] pixels of every part when nothing hides it.
    extents: int32 [P,4] where its pixels may be (xyxy, clipped to the strip).
    """

    picture: np.ndarray
    owner: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    extents: np.ndarray


@dataclass(frozen=True)
class Patch:
    """A shaded, turned part at image resolution: uint8 [h,w,4] BGR premultiplied by alpha; height of the part, px."""

    pixels: np.ndarray
    height: float


def render_scene(seed: int, index: int, size_hw: tuple[int, int] = FRAME_HW) -> Scene:
    """The index-th picture of the stream `seed`; the same arguments give the same bytes on the same OpenCV version.

    Raises: ValueError for a negative seed or index, or a side below 64 px.
    """
    if seed < 0 or index < 0 or min(size_hw) < 64:
        raise ValueError(f"need seed >= 0, index >= 0 and sides >= 64 px, got {seed}, {index}, {size_hw}")
    rng = np.random.default_rng([seed, index])
    strip = render_strip(rng, size_hw, scale=unit_scale(size_hw), count=int(rng.integers(2, 10)))
    frame = expose(rng, strip.picture, sample_camera(rng, size_hw))
    return annotate(frame, strip, 0, size_hw[1])


def unit_scale(frame_hw: tuple[int, int]) -> float:
    """Factor from the px of a 640x480 picture, in which sizes are declared, to those of this frame."""
    return min(frame_hw[0] / FRAME_HW[0], frame_hw[1] / FRAME_HW[1])


def render_strip(rng: np.random.Generator, size_hw: tuple[int, int], scale: float, count: int) -> Strip:
    """Draws a belt of size_hw with `count` parts; `scale` multiplies the parts' sizes."""
    picture, brightness = render_belt(rng, size_hw)
    lighting = sample_lighting(rng, brightness)
    owner = np.full(size_hw, NOBODY, np.int16)
    if rng.random() < 0.35:
        for _ in range(int(rng.integers(1, 4))):
            _put_scrap(rng, picture, owner, lighting, scale)
    labels, areas, extents = [], [], []
    taken: list[tuple[float, float, float]] = []
    for part in range(count):
        label = int(rng.integers(len(CLASS_NAMES)))
        size = rng.uniform(*PART_KINDS[CLASS_NAMES[label]].sizes) * scale
        patch = render_part(rng, label, size, lighting)
        centre = _find_place(rng, size_hw, size / 2, taken)
        taken.append((*centre, size / 2))
        labels.append(label)
        areas.append(int(np.count_nonzero(patch.pixels[:, :, 3] > 127)))
        extents.append(_put(picture, owner, patch, centre, lighting, part))
    return Strip(picture, owner, np.array(labels, np.int64), np.array(areas, np.int64), np.array(extents, np.int32))


def annotate(frame: np.ndarray, strip: Strip, left: int, width: int) -> Scene:
    """The Scene of the strip's columns left..left+width, with `frame` as its picture."""
    boxes, labels, visible, ids = [], [], [], []
    for part, (x1, y1, x2, y2) in enumerate(strip.extents):
        x1, x2 = max(int(x1), left), min(int(x2), left + width)
        if x1 >= x2 or y1 >= y2:
            continue
        seen = strip.owner[y1:y2, x1:x2] == part
        share = np.count_nonzero(seen) / max(int(strip.areas[part]), 1)
        if share < MIN_VISIBLE:
            continue
        columns, rows = np.flatnonzero(seen.any(axis=0)), np.flatnonzero(seen.any(axis=1))
        boxes.append((x1 - left + columns[0], y1 + rows[0], x1 - left + columns[-1] + 1, y1 + rows[-1] + 1))
        labels.append(strip.labels[part])
        visible.append(share)
        ids.append(part)
    return Scene(
        frame,
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(labels, np.int64),
        np.array(visible, np.float32),
        np.array(ids, np.int64),
    )


def render_part(rng: np.random.Generator, label: int, size: float, lighting: Lighting) -> Patch:
    """One part of class `label`, longest side `size` px, turned by a random angle."""
    kind = PART_KINDS[CLASS_NAMES[label]]
    shape = kind.build(rng, size * SUPERSAMPLE)
    main = sample_material(rng, choose_material(rng, kind.materials))
    second = sample_material(rng, str(rng.choice(list(shape.second_materials))))
    angle = rng.uniform(0, 2 * np.pi)
    return Patch(turn(shade(rng, shape, main, second, lighting, angle), angle, rng), shape.thickness / SUPERSAMPLE)


def turn(pixels: np.ndarray, angle: float, rng: np.random.Generator) -> np.ndarray:
    """Rotates a supersampled patch by `angle` (x towards y) and brings it to image px, at a sub-pixel offset."""
    height, width = pixels.shape[:2]
    cosine, sine = np.cos(angle), np.sin(angle)
    out_w = int(np.ceil((abs(width * cosine) + abs(height * sine)) / SUPERSAMPLE)) + 2
    out_h = int(np.ceil((abs(width * sine) + abs(height * cosine)) / SUPERSAMPLE)) + 2
    matrix = np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0]])
    big_centre = np.array([out_w, out_h]) * SUPERSAMPLE / 2 + rng.uniform(0, 1, size=2)
    matrix[:, 2] = big_centre - matrix[:, :2] @ np.array([(width - 1) / 2, (height - 1) / 2])
    turned = cv2.warpAffine(pixels, matrix, (out_w * SUPERSAMPLE, out_h * SUPERSAMPLE), flags=cv2.INTER_LINEAR)
    return cv2.resize(turned, (out_w, out_h), interpolation=cv2.INTER_AREA)


def _find_place(
    rng: np.random.Generator, size_hw: tuple[int, int], radius: float, taken: list[tuple[float, float, float]]
) -> tuple[float, float]:
    """A centre (x, y): usually clear of the others, sometimes wherever it falls; a part may cross the border."""
    height, width = size_hw
    wanted_gap = rng.choice([-0.7, -0.25, 0.0], p=[0.15, 0.25, 0.6])  # in units of the smaller radius
    best, best_gap = (width / 2, height / 2), -np.inf
    for _ in range(14):
        x = rng.uniform(-0.25 * radius, width + 0.25 * radius)
        y = rng.uniform(0.45 * radius, max(height - 0.45 * radius, 0.5 * radius))
        gap = min(
            (
                (np.hypot(x - other_x, y - other_y) - radius - other) / min(radius, other)
                for other_x, other_y, other in taken
            ),
            default=np.inf,
        )
        if gap > best_gap:
            best, best_gap = (x, y), gap
        if gap >= wanted_gap:
            break
    return best


def _put(
    picture: np.ndarray, owner: np.ndarray, patch: Patch, centre: tuple[float, float], lighting: Lighting, part: int
) -> tuple[int, int, int, int]:
    """Lays a patch and its shadow on the picture; part NOBODY leaves owner alone. Returns the clipped extent."""
    height, width = patch.pixels.shape[:2]
    left, top = round(centre[0] - width / 2), round(centre[1] - height / 2)
    _cast_shadow(picture, patch, left, top, lighting)
    x1, y1 = max(left, 0), max(top, 0)
    x2, y2 = min(left + width, picture.shape[1]), min(top + height, picture.shape[0])
    if x1 >= x2 or y1 >= y2:
        return 0, 0, 0, 0
    pixels = patch.pixels[y1 - top : y2 - top, x1 - left : x2 - left]
    alpha = cv2.extractChannel(pixels, 3)
    region = picture[y1:y2, x1:x2]
    passing = (255 - alpha) * np.float32(1 / 255)
    cv2.multiply(region, cv2.merge([passing, passing, passing]), region)
    cv2.accumulate(cv2.cvtColor(pixels, cv2.COLOR_BGRA2BGR), region)
    if part != NOBODY:
        owner[y1:y2, x1:x2][alpha > 127] = part
    return x1, y1, x2, y2


def _cast_shadow(picture: np.ndarray, patch: Patch, left: int, top: int, lighting: Lighting) -> None:
    """Darkens what lies around: a soft drop shadow away from the key light and the darkness of the contact."""
    height, width = patch.pixels.shape[:2]
    reach = patch.height * lighting.shadow_slope
    soft = max(0.22 * patch.height * lighting.shadow_softness, 1.0)
    contact_reach = max(0.22 * patch.height, 1.2)
    pad = 2 * (int(reach + 3 * max(soft, contact_reach)) // 2 + 1)
    alpha = cv2.copyMakeBorder(patch.pixels[:, :, 3], pad, pad, pad, pad, cv2.BORDER_CONSTANT, value=0)
    full = (alpha.shape[1], alpha.shape[0])
    alpha = cv2.resize(alpha, ((full[0] + 1) // 2, (full[1] + 1) // 2), interpolation=cv2.INTER_AREA)
    drop = alpha
    for share in (0.33, 0.67, 1.0):
        move_x, move_y = (-0.5 * reach * share * towards for towards in lighting.towards)
        shift = np.array([[1, 0, move_x], [0, 1, move_y]], np.float32)
        drop = np.maximum(drop, cv2.warpAffine(alpha, shift, (alpha.shape[1], alpha.shape[0])))
    drop = cv2.GaussianBlur(drop, (0, 0), 0.5 * soft)
    contact = cv2.GaussianBlur(alpha, (0, 0), 0.5 * contact_reach)
    light = (1.0 - drop * np.float32(lighting.shadow_strength / 255)) * (1.0 - contact * np.float32(0.3 / 255))
    light = cv2.resize(light, full, interpolation=cv2.INTER_LINEAR)
    x1, y1 = max(left - pad, 0), max(top - pad, 0)
    x2, y2 = min(left + width + pad, picture.shape[1]), min(top + height + pad, picture.shape[0])
    if x1 < x2 and y1 < y2:
        window = light[y1 - top + pad : y2 - top + pad, x1 - left + pad : x2 - left + pad]
        region = picture[y1:y2, x1:x2]
        cv2.multiply(region, cv2.merge([window, window, window]), region)


def _put_scrap(
    rng: np.random.Generator, picture: np.ndarray, owner: np.ndarray, lighting: Lighting, scale: float
) -> None:
    """A distractor without annotation: a metal chip, a crumb of dirt or a bit of paper."""
    size = rng.uniform(14, 48) * scale * SUPERSAMPLE
    side = int(size) + 12
    corners = int(rng.integers(4, 9))
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
    radii = size / 2 * rng.uniform(0.35, 1.0, corners)
    points = np.stack([radii * np.cos(angles), radii * np.sin(angles) * rng.uniform(0.25, 1.0)], axis=1) + side / 2
    mask = np.zeros((side, side), np.uint8)
    if rng.random() < 0.4:  # a curled chip
        cv2.polylines(mask, [np.round(points).astype(np.int32)], False, 255, int(rng.integers(2, 5)))
    else:
        cv2.fillPoly(mask, [np.round(points).astype(np.int32)], 255)
    relief = cv2.GaussianBlur(mask.astype(np.float32) * np.float32(rng.uniform(0.02, 0.05)), (0, 0), 1.5)
    shape = PartShape(relief, mask, thickness=float(rng.uniform(2, 6)))
    material = sample_material(rng, str(rng.choice(["dull steel", "white plastic", "black rubber", "copper", "steel"])))
    angle = rng.uniform(0, 2 * np.pi)
    pixels = turn(shade(rng, shape, material, material, lighting, angle), angle, rng)
    centre = rng.uniform((0, 0), (picture.shape[1], picture.shape[0]))
    _put(picture, owner, Patch(pixels, shape.thickness / SUPERSAMPLE), (centre[0], centre[1]), lighting, NOBODY)
