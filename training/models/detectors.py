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
from plugins.roi_max_pool.torch_op import max_pool_rois, roi_max_pool
from plugins.rpn_proposals.torch_op import rpn_proposals
from runtime.spec import DetectorSpec
from training.losses import (
    Losses,
    RoiSample,
    Targets,
    TrainSettings,
    detector_losses,
    rpn_losses,
    sample_rois,
    usable_targets,
)
from training.models.anchors import base_anchors, grid_anchors, level_strides
from training.models.backbones import Backbone, build_backbone
from training.models.roi_heads import RoiHeads, build_roi_heads
from training.models.rpn import RegionProposalNetwork, RpnHead
from training.models.widths import narrow

Detections = tuple[Tensor, Tensor, Tensor, Tensor]
Regions = tuple[list[Tensor], list[Tensor]]  # objectness L x [B, A, H, W] logits, bbox_deltas L x [B, 4A, H, W]


class FasterRcnn(nn.Module):
    """A two-stage detector. `spec` is the contract its weights were made for."""

    def __init__(
        self, *, spec: DetectorSpec, backbone: Backbone, rpn: RegionProposalNetwork, roi_heads: RoiHeads
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
        rois, num_rois = self.propose_for_test(images, im_info, self.rpn(features))
        return self.detect(features, rois, num_rois, im_info)

    def propose_for_test(self, images: Tensor, im_info: Tensor, regions: Regions) -> tuple[Tensor, Tensor]:
        """The spec's number of proposals, best first: float32 [B, R, 4] network px, and their number int32 [B]."""
        counts = (self.spec.rpn.pre_nms_top_n, self.spec.rpn.post_nms_top_n)
        return self._propose(images, im_info, *regions, *counts)

    def detect(self, features: list[Tensor], rois: Tensor, num_rois: Tensor, im_info: Tensor) -> Detections:
        """What `forward` returns, of proposals of this RPN or of another."""
        class_logits, box_deltas = self.roi_heads(self._pool(rois, features))
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
        regions = self.rpn(features)
        of_rpn = self.region_losses(images, im_info, regions, targets, settings)
        proposals = self.propose(images, im_info, regions, settings)
        return Losses(*of_rpn, *self.box_losses(features, proposals, targets, settings))

    def region_losses(
        self,
        images: Tensor,
        im_info: Tensor,
        regions: Regions,
        targets: Sequence[Targets],
        settings: TrainSettings,
    ) -> tuple[Tensor, Tensor]:
        """Objectness and box loss of what the RPN made of the features: `self.rpn(self.backbone(images))`."""
        objectness, bbox_deltas = regions
        anchors = self.anchors(images, objectness)
        weights = self.spec.rpn.box_coder_weights
        return rpn_losses(objectness, bbox_deltas, anchors, im_info, targets, weights, settings)

    def propose(
        self, images: Tensor, im_info: Tensor, regions: Regions, settings: TrainSettings
    ) -> tuple[Tensor, Tensor]:
        """Proposals to train the detector on: float32 [B, R, 4] network px, and their number int32 [B]."""
        counts = (settings.rpn_pre_nms_top_n, settings.rpn_post_nms_top_n)
        return self._propose(images, im_info, *regions, *counts)

    def box_losses(
        self,
        features: list[Tensor],
        proposals: tuple[Tensor, Tensor],
        targets: Sequence[Targets],
        settings: TrainSettings,
    ) -> tuple[Tensor, Tensor]:
        """Classification and box loss of the detector on a sample of the proposals, of this RPN or of another."""
        sample = self.sample(proposals, targets, settings)
        class_logits, box_deltas = self.classify(features, sample)
        return detector_losses(class_logits, box_deltas, sample, settings)

    def sample(
        self, proposals: tuple[Tensor, Tensor], targets: Sequence[Targets], settings: TrainSettings
    ) -> RoiSample:
        """The proposals that the detector learns from, S of all images, and what each should become."""
        return sample_rois(*proposals, targets, self.spec.detection.box_coder_weights, settings)

    def classify(self, features: list[Tensor], sample: RoiSample) -> tuple[Tensor, Tensor]:
        """Class logits [S, K + 1] and box deltas [S, 4 (K + 1)] or, class-agnostic, [S, 4] of sampled rois."""
        return self.roi_heads(self._pool_sample(sample, features))

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

    def anchors(self, images: Tensor, features: list[Tensor]) -> Tensor:
        """All anchors [N, 4] network px, for training; `features` are maps with the sides of the levels."""
        feature_hws = [_height_width(feature) for feature in features]
        strides = level_strides(self.spec.anchors, _height_width(images), feature_hws)
        return grid_anchors([cell.to(images.device, non_blocking=True) for cell in self.cells], strides, feature_hws)

    def _pool(self, rois: Tensor, features: list[Tensor]) -> Tensor:
        """The rois [B, R, 4] out of all L levels: [B * R, C, P, P]."""
        levels = self._pooled_levels(features)
        if self.spec.roi_pooling.op == "roi_max_pool":
            return roi_max_pool(rois, levels[0], *self._max_pooling_rule())
        return pyramid_roi_align(rois, levels, *self._pooling_rule())

    def _pool_sample(self, sample: RoiSample, features: list[Tensor]) -> Tensor:
        """The same for sampled rois, differentiable: [S, C, P, P]."""
        levels = self._pooled_levels(features)
        if self.spec.roi_pooling.op == "roi_max_pool":
            return max_pool_rois(sample.rois, sample.images, levels[0], *self._max_pooling_rule())
        return pool_rois(sample.rois, sample.images, levels, *self._pooling_rule())

    def _pooled_levels(self, features: list[Tensor]) -> list[Tensor]:
        return [features[level] for level in self.spec.roi_pooling.levels]

    def _pooling_rule(self) -> tuple[list[float], int, int, bool, float, int]:
        """The attributes of pyramid_roi_align, in its order."""
        rule = self.spec.roi_pooling
        size, ratio, aligned = rule.output_size, rule.sampling_ratio, rule.aligned
        scale, level = rule.canonical_scale, rule.canonical_level
        assert ratio is not None, "RoI Align without a sampling ratio"
        assert aligned is not None, "RoI Align without its alignment"
        assert scale is not None, "RoI Align without a canonical scale"
        assert level is not None, "RoI Align without a canonical level"
        return list(rule.spatial_scales), size, ratio, aligned, scale, level

    def _max_pooling_rule(self) -> tuple[int, float]:
        """The attributes of roi_max_pool, in its order."""
        return self.spec.roi_pooling.output_size, self.spec.roi_pooling.spatial_scales[0]

    def _detection_rule(self) -> tuple[float, float, int, float, list[float], float]:
        """The attributes of box_detections, in its order."""
        rule = self.spec.detection
        thresholds = (rule.score_threshold, rule.nms_threshold)
        return *thresholds, rule.max_detections, rule.min_size, list(rule.box_coder_weights), rule.box_clip


def build_detector(spec: DetectorSpec) -> FasterRcnn:
    """The detector that `spec` describes, in training mode, with torchvision's random initialisation.

    Raises:
        SpecError: the spec asks for what the backbone does not have, or for widths that cannot be.
    """
    backbone = build_backbone(spec.backbone)
    channels = backbone.out_channels
    head = RpnHead(
        channels=channels,
        hidden_channels=spec.rpn.channels or channels,
        num_anchors=spec.anchors.per_cell,
        conv_depth=spec.rpn.conv_depth,
        two_scores=spec.rpn.objectness == "softmax",
    )
    roi_heads = build_roi_heads(spec, channels=channels)
    model = FasterRcnn(spec=spec, backbone=backbone, rpn=RegionProposalNetwork(head), roi_heads=roi_heads)
    if spec.pruned_widths is not None:
        narrow(model, spec.pruned_widths)
        backbone.out_channels = head.in_channels
    return model


def _height_width(maps: Tensor) -> tuple[int, int]:
    return maps.shape[-2], maps.shape[-1]
