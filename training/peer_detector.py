"""torchvision's FasterRCNN with the spec and the weights of one of ours; the state-dict keys are the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from runtime.errors import UserError
from runtime.spec import DetectorSpec
from training.models.backbones import NORMS, build_backbone
from training.models.detectors import FasterRcnn


def torchvision_detector(ours: FasterRcnn) -> FasterRCNN:
    """torchvision's FasterRCNN of the same spec and weights, in evaluation mode.

    Raises:
        UserError: the spec has something that torchvision's classes cannot do.
    """
    spec = ours.spec
    _check_is_torchvisions(spec)
    channels, pooled = _fpn_channels(spec), spec.roi_pooling
    pooling = MultiScaleRoIAlign(
        [str(level) for level in range(len(spec.backbone.returned_stages))],
        output_size=pooled.output_size,
        sampling_ratio=pooled.sampling_ratio,
        canonical_scale=pooled.canonical_scale,  # type: ignore[arg-type]  # any number will do
        canonical_level=pooled.canonical_level,
    )
    model = FasterRCNN(
        _backbone(spec),
        min_size=spec.input.min_size,
        max_size=spec.input.max_size,
        image_mean=list(spec.input.mean),
        image_std=list(spec.input.std),
        size_divisible=spec.input.divisor,
        rpn_anchor_generator=_anchor_generator(spec),
        rpn_head=RPNHead(channels, spec.anchors.per_cell, conv_depth=spec.rpn.conv_depth),
        rpn_pre_nms_top_n_test=spec.rpn.pre_nms_top_n,
        rpn_post_nms_top_n_test=spec.rpn.post_nms_top_n,
        rpn_nms_thresh=spec.rpn.nms_threshold,
        rpn_score_thresh=spec.rpn.score_threshold,
        box_roi_pool=pooling,
        box_head=_box_head(spec),
        box_predictor=FastRCNNPredictor(spec.box_head.representation_size, spec.num_classes + 1),
        box_score_thresh=spec.detection.score_threshold,
        box_nms_thresh=spec.detection.nms_threshold,
        box_detections_per_img=spec.detection.max_detections,
        bbox_reg_weights=spec.detection.box_coder_weights,
    )
    model.load_state_dict(ours.state_dict())
    return model.eval()


def _check_is_torchvisions(spec: DetectorSpec) -> None:
    """See that torchvision's classes can do what the spec says."""
    anchors, rpn, pooling = spec.anchors, spec.rpn, spec.roi_pooling
    lacking = {
        "no FPN": spec.backbone.fpn_channels is None,
        "class-agnostic boxes": spec.box_head.class_agnostic,
        "other minimum sizes": rpn.min_size != 1e-3 or spec.detection.min_size != 1e-2,
        "other channels in the RPN": rpn.channels not in (None, spec.backbone.fpn_channels),
        "two scores per anchor": rpn.objectness is not None,
        "anchors in another order or not rounded": (anchors.order, anchors.rounding) != ("ratio_major", "half_even"),
        "other RoI pooling": pooling.op != "pyramid_roi_align" or pooling.aligned is not False,
    }
    found = [what for what, is_so in lacking.items() if is_so]
    if found:
        raise UserError(
            f"{spec.architecture} has {', '.join(found)}, which torchvision's Faster R-CNN cannot have: it cannot be "
            "compared with torchvision; leave out --against."
        )


def _fpn_channels(spec: DetectorSpec) -> int:
    channels = spec.backbone.fpn_channels
    assert channels is not None, "a detector without FPN"
    return channels


class NominalAnchorGenerator(AnchorGenerator):
    """torchvision's, with declared strides; its own takes floor(padded side / feature side)."""

    def __init__(self, strides: Sequence[int], sizes: Any, aspect_ratios: Any) -> None:
        super().__init__(sizes, aspect_ratios)
        self.strides = strides

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """As AnchorGenerator.forward."""
        sizes = [list(feature.shape[-2:]) for feature in feature_maps]
        strides = [[torch.tensor(stride), torch.tensor(stride)] for stride in self.strides]
        self.set_cell_anchors(feature_maps[0].dtype, feature_maps[0].device)
        anchors = torch.cat(self.grid_anchors(sizes, strides))
        return [anchors for _ in image_list.image_sizes]


def _anchor_generator(spec: DetectorSpec) -> AnchorGenerator:
    anchors = spec.anchors
    if anchors.stride_rule == "nominal":
        return NominalAnchorGenerator(anchors.strides, anchors.sizes, anchors.aspect_ratios)
    return AnchorGenerator(anchors.sizes, anchors.aspect_ratios)


def _backbone(spec: DetectorSpec) -> nn.Module:
    """torchvision's stages under torchvision's pyramid; the stages are its modules already."""
    body = build_backbone(spec.backbone).body
    shapes = [stage.shape[1] for stage in body.eval()(torch.zeros(1, 3, 64, 64)).values()]
    return BackboneWithFPN(
        body,
        return_layers=body.return_layers,  # type: ignore[arg-type]
        in_channels_list=shapes,
        out_channels=_fpn_channels(spec),
        extra_blocks=LastLevelMaxPool() if spec.backbone.extra_level == "pool" else None,
        norm_layer=NORMS["batch_norm"] if spec.backbone.fpn_norm == "batch_norm" else None,
    )


def _box_head(spec: DetectorSpec) -> nn.Module:
    head, channels, side = spec.box_head, _fpn_channels(spec), spec.roi_pooling.output_size
    if head.kind == "two_mlp":
        return TwoMLPHead(channels * side**2, head.representation_size)
    layers = list(head.conv_channels)
    return FastRCNNConvFCHead((channels, side, side), layers, [head.representation_size], norm_layer=nn.BatchNorm2d)
