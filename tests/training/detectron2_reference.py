"""detectron2's Faster R-CNN at test time, written down from its definitions, straight from its arrays: slow and plain.

Nothing of ours is used. One image at a time, no resizing. Boxes are xyxy in px of the image.
Ref: facebookresearch/detectron2, modeling/{anchor_generator,box_regression,poolers}.py, backbone/{resnet,fpn}.py,
proposal_generator/{rpn,proposal_utils}.py, roi_heads/{roi_heads,fast_rcnn}.py, config/defaults.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import roi_align

CLAMP = math.log(1000.0 / 16)


class Rules(NamedTuple):
    """The configuration, apart from what the arrays' shapes say."""

    is_fpn: bool
    mean: tuple[float, ...] = (103.53, 116.28, 123.675)  # of BGR, or as `is_bgr` says
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    is_bgr: bool = True
    stride_in_1x1: bool = True
    post_nms: int = 1000


class Reference:
    """A model of the zoo."""

    def __init__(self, arrays: Mapping[str, np.ndarray], rules: Rules) -> None:
        self.arrays = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        self.rules = rules
        self.bottom = "backbone.bottom_up." if rules.is_fpn else "backbone."

    @torch.no_grad()
    def __call__(self, frame_bgr: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """uint8 [H, W, 3] BGR -> boxes [N, 4], scores [N], classes [N] (0 .. K - 1), best first."""
        height, width = frame_bgr.shape[:2]
        levels = self.features(frame_bgr)
        proposals = self.proposals(levels, height, width)
        scores, deltas = self.heads(levels, proposals)
        probabilities = scores.softmax(dim=1)[:, :-1]  # the last class is the background
        found = []
        for roi, class_index in torch.nonzero(probabilities > 0.05).tolist():
            column = 0 if deltas.shape[1] == 4 else 4 * class_index
            delta = deltas[roi : roi + 1, column : column + 4]
            box = clipped(decoded(delta, proposals[roi : roi + 1], (10.0, 10.0, 5.0, 5.0)), height, width)[0]
            found.append((float(probabilities[roi, class_index]), class_index, box.numpy()))
        found.sort(key=lambda one: -one[0])
        kept = []
        for class_index in {one[1] for one in found}:
            members = [index for index, one in enumerate(found) if one[1] == class_index]
            kept += [members[i] for i in greedy_nms(np.stack([found[i][2] for i in members]), 0.5)]
        best = [found[index] for index in sorted(kept)[:100]]
        return np.array([one[2] for one in best]), np.array([one[0] for one in best]), np.array([o[1] for o in best])

    def features(self, frame_bgr: np.ndarray) -> list[Tensor]:
        """res4, or p2 .. p6."""
        channels = frame_bgr if self.rules.is_bgr else frame_bgr[:, :, ::-1]
        image = torch.from_numpy(
            (channels.astype(np.float32) - np.float32(self.rules.mean)) / np.float32(self.rules.std)
        )
        image = image.permute(2, 0, 1)[None].float()
        if self.rules.is_fpn:
            height, width = image.shape[2:]
            image = functional.pad(image, (0, -width % 32, 0, -height % 32))
        maps = self.conv(image, f"{self.bottom}stem.conv1", stride=2, padding=3).relu()
        maps = functional.max_pool2d(maps, kernel_size=3, stride=2, padding=1)
        stages = []
        for stage in (2, 3, 4, 5) if self.rules.is_fpn else (2, 3, 4):
            maps = self.stage(maps, f"{self.bottom}res{stage}", first_stride=1 if stage == 2 else 2)
            stages.append(maps)
        return self.pyramid(stages) if self.rules.is_fpn else [stages[-1]]

    def conv(self, maps: Tensor, name: str, stride: int = 1, padding: int = 0) -> Tensor:
        """A convolution with its bias, or with a frozen batch normalisation as detectron2 computes it."""
        maps = functional.conv2d(maps, self.arrays[f"{name}.weight"], self.arrays.get(f"{name}.bias"), stride, padding)
        if f"{name}.norm.weight" not in self.arrays:
            return maps
        weight, bias, mean, var = (
            self.arrays[f"{name}.norm.{part}"].reshape(1, -1, 1, 1)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (maps - mean) / torch.sqrt(var + 1e-5) * weight + bias

    def stage(self, maps: Tensor, name: str, first_stride: int) -> Tensor:
        """Bottleneck blocks: 1 x 1, 3 x 3, 1 x 1, and what went in."""
        block = 0
        while f"{name}.{block}.conv1.weight" in self.arrays:
            stride = first_stride if block == 0 else 1
            stride_1x1, stride_3x3 = (stride, 1) if self.rules.stride_in_1x1 else (1, stride)
            inner = self.conv(maps, f"{name}.{block}.conv1", stride=stride_1x1).relu()
            inner = self.conv(inner, f"{name}.{block}.conv2", stride=stride_3x3, padding=1).relu()
            inner = self.conv(inner, f"{name}.{block}.conv3")
            if f"{name}.{block}.shortcut.weight" in self.arrays:
                maps = self.conv(maps, f"{name}.{block}.shortcut", stride=stride)
            maps = (inner + maps).relu()
            block += 1
        return maps

    def pyramid(self, stages: list[Tensor]) -> list[Tensor]:
        """res2 .. res5 -> p2 .. p6."""
        merged, levels = None, []
        for number, maps in reversed(list(zip((2, 3, 4, 5), stages, strict=True))):
            lateral = self.conv(maps, f"backbone.fpn_lateral{number}")
            merged = lateral if merged is None else lateral + functional.interpolate(merged, scale_factor=2.0)
            levels.insert(0, self.conv(merged, f"backbone.fpn_output{number}", padding=1))
        return [*levels, levels[-1][:, :, ::2, ::2]]

    def proposals(self, levels: list[Tensor], height: int, width: int) -> Tensor:
        """Up to 1000 boxes [N, 4]: the best of each level, thinned level by level, then the best of all."""
        sizes = [[32], [64], [128], [256], [512]] if self.rules.is_fpn else [[32, 64, 128, 256, 512]]
        strides = [4, 8, 16, 32, 64] if self.rules.is_fpn else [16]
        most = 1000 if self.rules.is_fpn else 6000
        rpn = "proposal_generator.rpn_head"
        survivors = []
        for maps, level_sizes, stride in zip(levels, sizes, strides, strict=True):
            hidden = self.conv(maps, f"{rpn}.conv", padding=1).relu()
            logits = self.conv(hidden, f"{rpn}.objectness_logits")[0]  # [A, H, W]
            deltas = self.conv(hidden, f"{rpn}.anchor_deltas")[0].unflatten(0, (-1, 4))  # [A, 4, H, W]
            logits, deltas = logits.permute(1, 2, 0).flatten(), deltas.permute(2, 3, 0, 1).reshape(-1, 4)
            anchors = anchors_of(level_sizes, stride, maps.shape[2], maps.shape[3])
            best = torch.sort(logits, descending=True, stable=True).indices[:most]
            boxes = clipped(decoded(deltas[best], anchors[best], (1.0, 1.0, 1.0, 1.0)), height, width)
            solid = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
            boxes, scores = boxes[solid], logits[best][solid]
            kept = greedy_nms(boxes.numpy(), 0.7)
            survivors += [(float(scores[index]), boxes[index]) for index in kept]
        survivors.sort(key=lambda one: -one[0])
        return torch.stack([box for _, box in survivors[: self.rules.post_nms]])

    def heads(self, levels: list[Tensor], proposals: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits [N, K + 1] and deltas [N, 4 K] or [N, 4]."""
        hidden, predictor = self.hidden(levels, proposals), "roi_heads.box_predictor"
        return self.linear(hidden, f"{predictor}.cls_score"), self.linear(hidden, f"{predictor}.bbox_pred")

    def hidden(self, levels: list[Tensor], proposals: Tensor) -> Tensor:
        """What the box head makes of the proposals, [N, F]."""
        rois = torch.cat((torch.zeros(len(proposals), 1), proposals), dim=1)
        if self.rules.is_fpn:
            sides = torch.sqrt((proposals[:, 2] - proposals[:, 0]) * (proposals[:, 3] - proposals[:, 1]))
            chosen = torch.floor(4 + torch.log2(sides / 224 + 2.220446049250313e-16)).clamp(2, 5).long()
            pooled = torch.zeros(len(rois), levels[0].shape[1], 7, 7)
            for level in (2, 3, 4, 5):
                members = chosen == level
                pooled[members] = roi_align(levels[level - 2], rois[members], 7, 2.0**-level, 0, True)
            hidden = self.linear(pooled.flatten(1), "roi_heads.box_head.fc1").relu()
            return self.linear(hidden, "roi_heads.box_head.fc2").relu()
        pooled = roi_align(levels[0], rois, 14, 1 / 16, 0, True)
        return self.stage(pooled, "roi_heads.res5", first_stride=2).mean(dim=(2, 3))

    def linear(self, values: Tensor, name: str) -> Tensor:
        """A fully connected layer."""
        return values @ self.arrays[f"{name}.weight"].T + self.arrays[f"{name}.bias"]


def anchors_of(sizes: list[int], stride: int, height: int, width: int) -> Tensor:
    """[H * W * A, 4]: cell by cell, for each size each ratio, around the cell's corner, not rounded."""
    anchors = []
    for y in range(height):
        for x in range(width):
            for size in sizes:
                for ratio in (0.5, 1.0, 2.0):
                    w = math.sqrt(size**2 / ratio)
                    h = ratio * w
                    cx, cy = x * stride, y * stride
                    anchors.append([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
    return torch.tensor(anchors)


def decoded(deltas: Tensor, boxes: Tensor, weights: tuple[float, ...]) -> Tensor:
    """Box2BoxTransform.apply_deltas."""
    widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    x = boxes[:, 0] + 0.5 * widths + deltas[:, 0] / weights[0] * widths
    y = boxes[:, 1] + 0.5 * heights + deltas[:, 1] / weights[1] * heights
    w = torch.exp((deltas[:, 2] / weights[2]).clamp(max=CLAMP)) * widths
    h = torch.exp((deltas[:, 3] / weights[3]).clamp(max=CLAMP)) * heights
    return torch.stack((x - 0.5 * w, y - 0.5 * h, x + 0.5 * w, y + 0.5 * h), dim=1)


def clipped(boxes: Tensor, height: int, width: int) -> Tensor:
    """Corners moved into the image."""
    return torch.minimum(boxes.clamp(min=0), torch.tensor([width, height, width, height]))


def greedy_nms(boxes: np.ndarray, threshold: float) -> list[int]:
    """Indices of the boxes kept; they come best first, and one above the threshold with a kept one goes."""
    kept: list[int] = []
    for index, box in enumerate(boxes):
        others = boxes[kept].reshape(-1, 4)
        sides = np.minimum(others[:, 2:], box[2:]) - np.maximum(others[:, :2], box[:2])
        shared = np.clip(sides, 0, None).prod(axis=1)
        areas = (others[:, 2:] - others[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod()
        if not (shared / (areas - shared) > threshold).any():
            kept.append(index)
    return kept
