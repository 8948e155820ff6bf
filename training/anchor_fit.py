"""How well anchors fit boxes, and which would fit better.

Shapes: N boxes, A anchors per cell of a level, D numbers per point. Boxes are xyxy in network px.
Ref: Redmon and Farhadi, YOLO9000 (2017), section 2 (k-means of a data set's boxes). Here sizes and aspect ratios, which
are what an AnchorSpec has, are clustered by their logarithms: for two boxes of one shape, or of one area, 1 - IoU is to
first order the distance of those.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from runtime.anchors import base_anchors, level_strides
from runtime.preprocess import canvas_size, network_size
from runtime.spec import AnchorSpec, DetectorSpec

THRESHOLDS = (0.5, 0.7)
RESTARTS = 10  # of k-means, the best is taken
MOST_STEPS = 200
LEAST_PER_SIZE = 10  # boxes, below which a size would be fitted to chance


class PlacedBoxes(NamedTuple):
    """The boxes of one image as the network sees them: float32 [N, 4] network px; the padded input's sides, px."""

    boxes_xyxy: np.ndarray
    image_hw: tuple[int, int]


class Suggestion(NamedTuple):
    """Anchors per level: sizes in network px, aspect ratios height / width; levels whose sizes are the data's."""

    anchors: AnchorSpec
    fitted_levels: tuple[int, ...]


def placed(boxes_xyxy: np.ndarray, frame_hw: tuple[int, int], spec: DetectorSpec) -> PlacedBoxes:
    """Boxes [N, 4] of a frame of (height, width) image px, after the resizing that `spec` asks for."""
    height, width = network_size(frame_hw, spec)
    scale = np.array([width / frame_hw[1], height / frame_hw[0]] * 2, np.float32)
    return PlacedBoxes(boxes_xyxy.astype(np.float32) * scale, canvas_size([(height, width)], spec))


def best_ious(images: Sequence[PlacedBoxes], spec: AnchorSpec) -> np.ndarray:
    """IoU of each box of all images with the best of all anchors of its image, float64 [N].

    Of the anchors of one shape the best is the one whose centre is nearest on each axis, so only that one is tried.
    """
    cells = base_anchors(spec)
    found = [np.zeros(0)]
    for boxes, image_hw in images:
        feature_hws = [(-(-image_hw[0] // stride), -(-image_hw[1] // stride)) for stride in spec.strides]
        strides = level_strides(spec, image_hw, feature_hws)
        levels = zip(cells, strides, feature_hws, strict=True)
        of_levels = [_best_of_level(boxes.astype(float), *level) for level in levels]
        found.append(np.max(of_levels, axis=0))
    return np.concatenate(found)


def _best_of_level(
    boxes: np.ndarray, cells: np.ndarray, stride_yx: tuple[int, int], feature_hw: tuple[int, int]
) -> np.ndarray:
    """Best IoU [N] of `boxes` [N, 4] with the anchors of one level, whose base anchors are `cells` [A, 4]."""
    strides, last = np.array(stride_yx[::-1]), np.array(feature_hw[::-1]) - 1  # (x, y)
    box_centers = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2  # [N, 1, 2]
    cell_centers = (cells[None, :, :2] + cells[None, :, 2:]) / 2  # [1, A, 2]
    nearest = np.clip(np.round((box_centers - cell_centers) / strides), 0, last)  # [N, A, 2]
    anchors = cells[None] + np.tile(nearest * strides, 2)  # [N, A, 4]
    sides = np.minimum(boxes[:, None, 2:], anchors[:, :, 2:]) - np.maximum(boxes[:, None, :2], anchors[:, :, :2])
    shared = np.clip(sides, 0, None).prod(axis=2)  # [N, A]
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)[:, None] + (cells[:, 2:] - cells[:, :2]).prod(axis=1)
    return (shared / (areas - shared)).max(axis=1)


def fit_of(ious: np.ndarray) -> dict[str, float]:
    """Mean of the best IoUs, and the share of boxes at or above each of THRESHOLDS."""
    shares = {f"share_at_{threshold:g}": float((ious >= threshold).mean()) for threshold in THRESHOLDS}
    return {"mean_best_iou": float(ious.mean()), **shares}


def suggested_anchors(widths: np.ndarray, heights: np.ndarray, spec: AnchorSpec, seed: int = 0) -> Suggestion:
    """As many sizes per level and as many ratios as `spec` has, fitted to boxes of these sides, network px [N].

    A box is the concern of the level whose own sizes are nearest to its side, sqrt(width * height), on a logarithmic
    scale. A level with fewer than LEAST_PER_SIZE different sides for each of its sizes keeps them. All levels get the
    same ratios; fewer different ratios than asked for leave them as they are.
    """
    rng = np.random.default_rng(seed)
    sides, ratios = np.log(np.sqrt(widths * heights)), np.log(heights / widths)
    middles = np.array([np.log(sizes).mean() for sizes in spec.sizes])
    level_of = np.abs(sides[:, None] - middles).argmin(axis=1)
    sizes, fitted = [], []
    for level, present in enumerate(spec.sizes):
        members = sides[level_of == level]
        if len(np.unique(members)) >= LEAST_PER_SIZE * len(present):
            centers = np.exp(np.sort(k_means(members[:, None], len(present), rng)[:, 0]))
            present = tuple(float(f"{center:.3g}") for center in centers)
            fitted.append(level)
        sizes.append(present)
    new_ratios = []
    for present in spec.aspect_ratios:
        if len(np.unique(ratios)) >= len(present):
            centers = np.exp(np.sort(k_means(ratios[:, None], len(present), np.random.default_rng(seed))[:, 0]))
            present = tuple(float(f"{center:.3g}") for center in centers)
        new_ratios.append(present)
    anchors = dataclasses.replace(spec, sizes=tuple(sizes), aspect_ratios=tuple(new_ratios))
    return Suggestion(anchors, tuple(fitted))


def k_means(points: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` centres [count, D] of `points` [N, D] with the least sum of squared distances that RESTARTS tries find.

    Ref: Lloyd (1982); the first centres are drawn as in Arthur and Vassilvitskii, k-means++ (2007).
    """
    assert len(np.unique(points, axis=0)) >= count, "fewer different points than centres"
    tries = [_lloyd(points, _first_centers(points, count, rng)) for _ in range(RESTARTS)]
    return min(tries, key=lambda centers: float(_squared_distances(points, centers).min(axis=1).sum()))


def _first_centers(points: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Points, each drawn with a probability that grows with the squared distance to those drawn before."""
    centers = points[rng.integers(len(points))][None]
    while len(centers) < count:
        distances = _squared_distances(points, centers).min(axis=1)
        chosen = rng.choice(len(points), p=distances / distances.sum())
        centers = np.concatenate([centers, points[chosen][None]])
    return centers


def _lloyd(points: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Each centre moved to the mean of its points until none moves; one without points stays."""
    for _ in range(MOST_STEPS):
        nearest = _squared_distances(points, centers).argmin(axis=1)
        moved = centers.copy()
        for index in np.unique(nearest):
            moved[index] = points[nearest == index].mean(axis=0)
        if np.array_equal(moved, centers):
            break
        centers = moved
    return centers


def _squared_distances(points: np.ndarray, centers: np.ndarray) -> np.ndarray:
    return ((points[:, None] - centers[None]) ** 2).sum(axis=2)  # [N, count]
