"""What plugins/benchmark.py measures: the sizes of two detectors, and inputs like those of a trained one.

Proposals of a trained network come in heaps around objects, which is what makes NMS work. So a scene of objects is
drawn by lot, scores rise with an anchor's IoU with its object, and deltas point at it. All by seed: the same numbers
each time.

Shapes: B images, L levels, A anchors per cell, R rois per image, K foreground classes, C channels, H x W cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import box_iou

OPS = ("rpn_proposals", "pyramid_roi_align", "roi_max_pool", "box_detections", "preprocess")
TYPES = {"fp32": torch.float32, "fp16": torch.float16}
UNIT_WEIGHTS, BOX_WEIGHTS = (1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class MaxPool:
    """Features and rois of RoiMaxPool."""

    channels: int
    cells: tuple[int, int]
    rois: int
    output_size: int
    spatial_scale: float


@dataclass(frozen=True)
class Case:
    """Sizes of one detector; px are network px but for the frame's."""

    name: str
    input_hw: tuple[int, int]  # padded
    valid_hw: tuple[int, int]
    cells: tuple[tuple[int, int], ...]  # of each RPN level
    anchor_sizes: tuple[tuple[int, ...], ...]
    rpn_top_n: int  # per level before NMS, and per image after: R
    rpn_score: float
    channels: int
    pooled_levels: int  # the finest ones
    classes: int  # K
    detections: int
    max_pool: MaxPool
    frame_hw: tuple[int, int]  # image px
    resize_rule: tuple[int, int]  # of the shorter side, and the most of the longer one
    resized_hw: tuple[int, int]  # what the frame becomes, on a canvas of input_hw
    objects: int

    @property
    def strides(self) -> list[tuple[int, int]]:
        """torchvision's: padded side // cells."""
        return [(self.input_hw[0] // height, self.input_hw[1] // width) for height, width in self.cells]

    @property
    def spatial_scales(self) -> list[float]:
        """Of the pooled levels: powers of two."""
        return [1.0 / self.strides[level][0] for level in range(self.pooled_levels)]

    def anchor_generator(self) -> AnchorGenerator:
        return AnchorGenerator(self.anchor_sizes, ((0.5, 1.0, 2.0),) * len(self.cells))

    def anchors(self) -> list[Tensor]:
        """Per level [H * W * A, 4] in the order (h, w, a)."""
        generator = self.anchor_generator()
        strides = [[torch.tensor(stride) for stride in pair] for pair in self.strides]
        return generator.grid_anchors([list(cells) for cells in self.cells], strides)


CASES = {
    case.name: case
    for case in (
        Case(
            name="r50",  # fasterrcnn_resnet50_fpn; max pooling as in its C4 sibling
            input_hw=(800, 1344),
            valid_hw=(800, 1333),
            cells=((200, 336), (100, 168), (50, 84), (25, 42), (13, 21)),
            anchor_sizes=((32,), (64,), (128,), (256,), (512,)),
            rpn_top_n=1000,
            rpn_score=0.0,
            channels=256,
            pooled_levels=4,
            classes=90,
            detections=100,
            max_pool=MaxPool(1024, (50, 84), 300, 14, 1 / 16),
            frame_hw=(1080, 1920),
            resize_rule=(800, 1333),
            resized_hw=(749, 1333),
            objects=40,
        ),
        Case(
            name="mobilenet",  # fasterrcnn_mobilenet_v3_large_320_fpn
            input_hw=(320, 320),
            valid_hw=(320, 320),
            cells=((10, 10), (10, 10), (5, 5)),
            anchor_sizes=((32, 64, 128, 256, 512),) * 3,
            rpn_top_n=150,
            rpn_score=0.05,
            channels=256,
            pooled_levels=1,  # torchvision's two have the same stride, and rois go to the first
            classes=90,
            detections=100,
            max_pool=MaxPool(256, (10, 10), 150, 7, 1 / 32),
            frame_hw=(1080, 1920),
            resize_rule=(320, 320),
            resized_hw=(180, 320),
            objects=12,
        ),
        Case(
            name="tiny",  # of no detector: to see that all runs, on a CPU
            input_hw=(128, 160),
            valid_hw=(120, 150),
            cells=((16, 20), (8, 10), (4, 5)),
            anchor_sizes=((16,), (32,), (64,)),
            rpn_top_n=60,
            rpn_score=0.0,
            channels=16,
            pooled_levels=2,
            classes=5,
            detections=20,
            max_pool=MaxPool(8, (8, 10), 30, 7, 1 / 16),
            frame_hw=(96, 160),
            resize_rule=(90, 150),
            resized_hw=(90, 150),
            objects=8,
        ),
    )
}


class Scene:
    """Objects of `batch` images: boxes [B, M, 4], network px, and their classes [B, M]."""

    def __init__(self, case: Case, batch: int, seed: int = 0) -> None:
        self.case, self.batch = case, batch
        self.rng = torch.Generator().manual_seed(seed)
        height, width = case.valid_hw
        sides = torch.exp(torch.rand(batch, case.objects, 2, generator=self.rng) * 3.2) * 0.025 * min(height, width)
        centers = torch.rand(batch, case.objects, 2, generator=self.rng) * torch.tensor([width, height])
        self.boxes = self.clipped(torch.cat((centers - sides / 2, centers + sides / 2), dim=2))
        self.classes = torch.randint(case.classes, (batch, case.objects), generator=self.rng)

    def clipped(self, boxes: Tensor) -> Tensor:
        height, width = self.case.valid_hw
        limits = torch.tensor([width, height, width, height])
        return boxes.clamp(min=torch.zeros(4), max=limits - torch.tensor([1, 1, 0, 0]))

    def noise(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.rng)

    def rpn_maps(self) -> tuple[list[Tensor], list[Tensor]]:
        """Per level objectness [B, A, H, W] and bbox_deltas [B, 4A, H, W]."""
        maps = [self._level_maps(*level) for level in zip(self.case.anchors(), self.case.cells, strict=True)]
        return [objectness for objectness, _ in maps], [deltas for _, deltas in maps]

    def _level_maps(self, anchors: Tensor, cells: tuple[int, int]) -> tuple[Tensor, Tensor]:
        coder, shape = BoxCoder(UNIT_WEIGHTS), (self.batch, *cells, -1)
        logits, deltas = [], []
        for objects in self.boxes:
            iou, nearest = box_iou(anchors, objects).max(dim=1)
            logits.append(10 * iou - 6 + 0.7 * self.noise(len(anchors)))
            pull = coder.encode_single(objects[nearest], anchors)
            deltas.append(torch.where(iou[:, None] > 0.3, pull, 0.0) + 0.15 * self.noise(len(anchors), 4))
        objectness = torch.stack(logits).reshape(shape).permute(0, 3, 1, 2)
        bbox_deltas = torch.stack(deltas).reshape(shape).permute(0, 3, 1, 2)
        return objectness.contiguous(), bbox_deltas.contiguous()

    def rois(self, count: int) -> Tensor:
        """[B, count, 4]: two thirds near objects, the rest anywhere."""
        near = torch.randint(self.case.objects, (self.batch, count), generator=self.rng)
        boxes = torch.gather(self.boxes, 1, near[..., None].expand(-1, -1, 4))
        sides = (boxes[..., 2:] - boxes[..., :2]).repeat(1, 1, 2)
        boxes = boxes + 0.1 * sides * self.noise(self.batch, count, 4)
        height, width = self.case.valid_hw
        corners = torch.rand(self.batch, count, 2, 2, generator=self.rng) * torch.tensor([width, height])
        anywhere = torch.cat((corners.amin(dim=2), corners.amax(dim=2)), dim=2)
        rois = torch.where((torch.arange(count) % 3 < 2)[:, None], boxes, anywhere)
        lowest, highest = rois[..., :2], torch.maximum(rois[..., 2:], rois[..., :2] + 4)
        return self.clipped(torch.cat((lowest, highest), dim=2))

    def box_head(self, rois: Tensor) -> tuple[Tensor, Tensor]:
        """Of rois [B, R, 4]: class_logits [B * R, K + 1] and bbox_deltas [B * R, 4 (K + 1)]."""
        columns = self.case.classes + 1
        logits = []
        for boxes, objects, classes in zip(rois, self.boxes, self.classes, strict=True):
            iou, nearest = box_iou(boxes, objects).max(dim=1)
            scores = self.noise(len(boxes), columns)
            scores[:, 0] += 6
            own = classes[nearest] + 1
            scores[torch.arange(len(boxes)), own] += 14 * iou - 2
            logits.append(scores)
        return torch.cat(logits), 0.4 * self.noise(rois.shape[0] * rois.shape[1], 4 * columns)

    def nv12_frames(self) -> list[Tensor]:
        """uint8 [3 height / 2, width]: smooth, as pictures are."""
        height, width = self.case.frame_hw
        coarse = torch.rand(self.batch, 1, height // 24, width // 24, generator=self.rng)
        smooth = functional.interpolate(coarse, (height * 3 // 2, width), mode="bilinear", align_corners=False)
        return list((16 + smooth[:, 0] * 219).to(torch.uint8))
