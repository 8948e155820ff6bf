"""Joint training of a student that also learns from a teacher. The terms are those of `training/distill_losses.py`.

Shapes: B images, H x W network input, L levels, S sampled rois of all images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from training.distill_losses import (
    BoxOutputs,
    RegionOutputs,
    bounded_boxes,
    feature_imitation,
    near_objects,
    region_imitation,
    soft_classes,
)
from training.distill_settings import DistillSettings, check_teacher, matched_levels
from training.losses import Losses, RoiSample, Targets, detector_losses, usable_targets
from training.models.detectors import FasterRcnn, Regions
from training.models.folded_norms import FoldedNorms
from training.settings import TrainSettings


class DistillTask:
    """The joint losses of the student, plus its distance from the teacher on the same images, anchors and rois.

    Args:
        settings: matching and sampling.
        rule: weights of the terms.
        student: what is trained; only its spec is read here.
        teacher: evaluated as it is, never trained.

    Raises:
        UserError: this teacher cannot teach this student.
    """

    def __init__(
        self, *, settings: TrainSettings, rule: DistillSettings, student: FasterRcnn, teacher: FasterRcnn
    ) -> None:
        check_teacher(student.spec, teacher.spec, rule)
        self.settings = settings
        self.rule = rule
        self.teacher = teacher.eval().requires_grad_(False)
        self.teachers_norms = FoldedNorms(teacher)
        self.levels = matched_levels(student.spec, teacher.spec) if rule.distill_features else []
        channels = student.backbone.out_channels, teacher.backbone.out_channels
        # one 1 x 1 convolution per pair of levels brings the student's features to the teacher's number of channels
        self.adapters = nn.ModuleList(
            nn.Identity() if channels[0] == channels[1] else nn.Conv2d(*channels, kernel_size=1) for _ in self.levels
        )

    def to(self, device: torch.device) -> DistillTask:
        """Move the teacher and the adapters."""
        self.teacher.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.adapters.to(device)
        return self

    def trained(self, model: FasterRcnn) -> list[nn.Module]:
        """All of the student; the adapters, which are no part of it, get into the optimizer by DistillTrainer."""
        return [model]

    def losses(
        self, model: FasterRcnn, images: Tensor, im_info: Tensor, targets: Sequence[Targets]
    ) -> Mapping[str, Tensor]:
        """The four joint losses and the weighted terms of distillation.

        Args:
            model: the student.
            images, im_info, targets: as for every Task.
        """
        targets = usable_targets(targets)
        features = model.backbone(images)
        regions = model.rpn(features)
        of_rpn = model.region_losses(images, im_info, regions, targets, self.settings)
        sample = model.sample(model.propose(images, im_info, regions, self.settings), targets, self.settings)
        boxes = model.classify(features, sample)
        joint = Losses(*of_rpn, *detector_losses(*boxes, sample, self.settings))
        return {**joint._asdict(), **self._distances(model, images, targets, features, regions, sample, boxes)}

    def _distances(
        self,
        model: FasterRcnn,
        images: Tensor,
        targets: Sequence[Targets],
        features: list[Tensor],
        regions: Regions,
        sample: RoiSample,
        boxes: tuple[Tensor, Tensor],
    ) -> dict[str, Tensor]:
        """The terms whose weight is not 0, times their weights."""
        rule, teacher = self.rule, self.teacher
        with torch.no_grad(), self.teachers_norms.active():
            their_features = teacher.backbone(images)
            their_regions: Regions = teacher.rpn(their_features)
            their_boxes = teacher.classify(their_features, sample)
        terms: dict[str, Tensor] = {}
        if rule.distill_features:
            near = self._near(model, images, targets, regions)
            distance = self._feature_distance(features, their_features, near)
            terms["distill_feature"] = rule.distill_features * distance
        if rule.distill_rpn:
            own = RegionOutputs(*regions, model.spec.rpn.box_coder_weights)
            other = RegionOutputs(*their_regions, teacher.spec.rpn.box_coder_weights)
            objectness, rpn_box = region_imitation(own, other, rule.teacher_confidence, self.settings)
            terms["distill_objectness"] = rule.distill_rpn * objectness
            terms["distill_rpn_box"] = rule.distill_rpn * rpn_box
        if rule.distill_classes:
            terms["distill_class"] = rule.distill_classes * soft_classes(boxes[0], their_boxes[0], rule.temperature)
        if rule.distill_boxes:
            own_boxes = BoxOutputs(*boxes, model.spec.detection.box_coder_weights)
            bound = BoxOutputs(*their_boxes, teacher.spec.detection.box_coder_weights)
            terms["distill_box"] = rule.distill_boxes * bounded_boxes(own_boxes, bound, sample, rule.box_margin)
        return terms

    def _near(self, model: FasterRcnn, images: Tensor, targets: Sequence[Targets], regions: Regions) -> list[Tensor]:
        """Cells near objects, bool [B, H, W] for each pair of levels."""
        objectness, _ = regions
        sides = [tuple(level.shape[-2:]) for level in objectness]
        per_cell = model.spec.anchors.per_cell
        counts = [height * width * per_cell for height, width in sides]
        anchors = model.anchors(images, objectness).split(counts)  # L x [HWA, 4]
        near = []
        for level, _ in self.levels:
            cells = anchors[level].reshape(*sides[level], per_cell, 4)
            near.append(torch.stack([near_objects(cells, one.boxes, self.rule.near_share) for one in targets]))
        return near

    def _feature_distance(self, features: list[Tensor], theirs: list[Tensor], near: list[Tensor]) -> Tensor:
        adapted = [adapter(features[own]) for adapter, (own, _) in zip(self.adapters, self.levels, strict=True)]
        return feature_imitation(adapted, [theirs[other] for _, other in self.levels], near)
