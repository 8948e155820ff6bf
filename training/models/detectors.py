"""Faster R-CNN assembled from a DetectorSpec.

Shapes: B images, H x W network input, L levels, R rois per image, K foreground classes, D detections.
Ref: Ren et al., Faster R-CNN (2015); Lin et al., Feature Pyramid Networks (2017).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from plugins.box_detections.torch_op import box_detections
from plugins.pyramid_roi_align.torch_op import pool_rois, pyramid_roi_align
from plugins.rpn_proposals.torch_op import rpn_proposals
from runtime.spec import DetectorSpec
from training.losses import (
    Losses,
    Targets,
    TrainSettings,
    detector_losses,
    rpn_losses,
    sample_rois,
    usable_targets,
)
from training.models.anchors import base_anchors, grid_anchors, level_strides
from training.models.backbones import BackboneWithFpn, build_backbone
from training.models.roi_heads import RoiHeads, build_roi_heads
from training.models.rpn import RegionProposalNetwork, RpnHead

Detections = tuple[Tensor, Tensor, Tensor, Tensor]


class FasterRcnn(nn.Module):
    """A two-stage detector. `spec` is the contract its weights were made for."""

    def __init__(
        self, *, spec: DetectorSpec, backbone: BackboneWithFpn, rpn: RegionProposalNetwork, roi_heads: RoiHeads
    ) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = backbone
        self.rpn = rpn
        self.roi_heads = roi_heads
        self.cells = base_anchors(spec.anchors)  # L x [A, 4]; made from the spec, so no part of the weights
        self.cell_numbers: list[float] = torch.cat(self.cells).flatten().tolist()

    def forward(self, images: Tensor, im_info: Tensor) -> Detections:
        """Detect.

        Args:
            images: float32 [B, 3, H, W], as runtime.preprocess makes them.
            im_info: float32 [B, 4], (valid height, valid width, scale y, scale x).

        Returns:
            num_detections int32 [B, 1]; detection_boxes float32 [B, D, 4] xyxy image px; detection_scores float32
            [B, D], descending; detection_classes int32 [B, D]. Unused rows: box 0, score 0, class -1.
        """
        features = self.backbone(images)
        objectness, bbox_deltas = self.rpn(features)
        counts = (self.spec.rpn.pre_nms_top_n, self.spec.rpn.post_nms_top_n)
        rois, num_rois = self._propose(images, im_info, objectness, bbox_deltas, *counts)
        pooled = pyramid_roi_align(rois, self._pooled_levels(features), *self._pooling_rule())
        class_logits, box_deltas = self.roi_heads(pooled)
        return box_detections(rois, num_rois, class_logits, box_deltas, im_info, *self._detection_rule())

    def losses(
        self, images: Tensor, im_info: Tensor, targets: Sequence[Targets], settings: TrainSettings | None = None
    ) -> Losses:
        """The four losses of a batch.

        Args:
            images: float32 [B, 3, H, W].
            im_info: float32 [B, 4].
            targets: one per image, boxes in network px, labels 1 .. K; boxes without area are passed over.
            settings: sampling and matching; None: torchvision's.
        """
        settings = settings or TrainSettings()
        targets = usable_targets(targets)
        features = self.backbone(images)
        objectness, bbox_deltas = self.rpn(features)
        anchors = self._anchors(images, features)
        rpn_weights, box_weights = self.spec.rpn.box_coder_weights, self.spec.detection.box_coder_weights
        rpn_objectness, rpn_box = rpn_losses(objectness, bbox_deltas, anchors, targets, rpn_weights, settings)
        counts = (settings.rpn_pre_nms_top_n, settings.rpn_post_nms_top_n)
        rois, num_rois = self._propose(images, im_info, objectness, bbox_deltas, *counts)
        sample = sample_rois(rois, num_rois, targets, box_weights, settings)
        pooled = pool_rois(sample.rois, sample.images, self._pooled_levels(features), *self._pooling_rule())
        class_logits, box_deltas = self.roi_heads(pooled)
        return Losses(rpn_objectness, rpn_box, *detector_losses(class_logits, box_deltas, sample, settings))

    def _propose(
        self,
        images: Tensor,
        im_info: Tensor,
        objectness: list[Tensor],
        bbox_deltas: list[Tensor],
        pre_nms_top_n: int,
        post_nms_top_n: int,
    ) -> tuple[Tensor, Tensor]:
        """Proposals float32 [B, R, 4] network px and their number int32 [B]; no gradient passes through them."""
        rpn = self.spec.rpn
        strides = level_strides(self.spec.anchors, _height_width(images), [_height_width(o) for o in objectness])
        return rpn_proposals(
            im_info,
            [level.detach() for level in objectness],
            [level.detach() for level in bbox_deltas],
            self.cell_numbers,
            list(chain.from_iterable(strides)),
            pre_nms_top_n,
            post_nms_top_n,
            rpn.nms_threshold,
            rpn.score_threshold,
            rpn.min_size,
            list(rpn.box_coder_weights),
            rpn.box_clip,
        )

    def _anchors(self, images: Tensor, features: list[Tensor]) -> Tensor:
        """All anchors [N, 4] network px, for training."""
        feature_hws = [_height_width(feature) for feature in features]
        strides = level_strides(self.spec.anchors, _height_width(images), feature_hws)
        return grid_anchors([cell.to(images.device) for cell in self.cells], strides, feature_hws)

    def _pooled_levels(self, features: list[Tensor]) -> list[Tensor]:
        return [features[level] for level in self.spec.roi_pooling.levels]

    def _pooling_rule(self) -> tuple[list[float], int, int, bool, float, int]:
        """The attributes of pyramid_roi_align, in its order."""
        rule = self.spec.roi_pooling
        scales = list(rule.spatial_scales)
        size, ratio = rule.output_size, rule.sampling_ratio
        return scales, size, ratio, rule.aligned, rule.canonical_scale, rule.canonical_level

    def _detection_rule(self) -> tuple[float, float, int, float, list[float], float]:
        """The attributes of box_detections, in its order."""
        rule = self.spec.detection
        thresholds = (rule.score_threshold, rule.nms_threshold)
        return *thresholds, rule.max_detections, rule.min_size, list(rule.box_coder_weights), rule.box_clip


def build_detector(spec: DetectorSpec) -> FasterRcnn:
    """The detector that `spec` describes, in training mode, with torchvision's random initialisation.

    Raises:
        SpecError: the spec asks for what the backbone does not have.
    """
    channels = spec.backbone.fpn_channels
    head = RpnHead(channels=channels, num_anchors=spec.anchors.per_cell, conv_depth=spec.rpn.conv_depth)
    roi_heads = build_roi_heads(
        spec.box_head, channels=channels, pooled_size=spec.roi_pooling.output_size, num_classes=spec.num_classes
    )
    backbone = build_backbone(spec.backbone)
    return FasterRcnn(spec=spec, backbone=backbone, rpn=RegionProposalNetwork(head), roi_heads=roi_heads)


def _height_width(maps: Tensor) -> tuple[int, int]:
    return maps.shape[-2], maps.shape[-1]
