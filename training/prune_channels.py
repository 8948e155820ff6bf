"""Structured channel pruning: which channels go, and the narrower detector with a spec that says what it is.

torch-pruning follows the channels through a traced forward pass: through residual sums, depthwise convolutions,
squeeze-and-excitation, the FPN's top-down path, the RPN that all levels share, and the first fully connected layer,
where each channel has P x P columns. Our ops do not keep channels together by gradients, so the trace has average
pooling in place of proposals and RoI pooling: it treats channels alike.
Ref: Li et al., Pruning Filters for Efficient ConvNets (2017); Fang et al., DepGraph (2023).
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import FrozenBatchNorm2d

from runtime.spec import DetectorSpec
from training.models.batch_norms import PARTS
from training.models.detectors import FasterRcnn, build_detector
from training.models.roi_heads import ConvFcHead, Res5Head
from training.models.widths import changed_widths

# how much a group of channels that go together matters, from the norm of all weights that make or read it
IMPORTANCES: dict[str, Callable[[], torch_pruning.importance.Importance]] = {
    "l2": lambda: torch_pruning.importance.GroupMagnitudeImportance(p=2),
    "l1": lambda: torch_pruning.importance.GroupMagnitudeImportance(p=1),
    "random": torch_pruning.importance.RandomImportance,
}


class FrozenNormPruner(torch_pruning.BasePruningFunc):
    """Tells torch-pruning how a FrozenBatchNorm2d, which is no batch norm of torch's, loses channels."""

    def prune_out_channels(self, layer: nn.Module, idxs: list[int]) -> nn.Module:
        """Drop the channels `idxs`."""
        gone = set(idxs)
        kept = [index for index in range(self.get_out_channels(layer)) if index not in gone]
        for name in PARTS:
            setattr(layer, name, getattr(layer, name)[kept])
        return layer

    prune_in_channels = prune_out_channels

    def get_out_channels(self, layer: nn.Module) -> int:
        """C."""
        return len(layer.weight)  # type: ignore[arg-type]

    get_in_channels = get_out_channels


class DenseParts(nn.Module):
    """All layers of a detector on one path that a trace can follow."""

    def __init__(self, model: FasterRcnn) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> the RPN's outputs of all levels, and the box head's of one roi, the whole image."""
        features = self.model.backbone(images)
        objectness, bbox_deltas = self.model.rpn(features)
        rule = self.model.spec.roi_pooling
        pooled = [functional.adaptive_avg_pool2d(features[level], rule.output_size) for level in rule.levels]
        return [*objectness, *bbox_deltas, *self.model.roi_heads(torch.stack(pooled).sum(dim=0))]


def prune_channels(model: FasterRcnn, *, ratio: float, importance: str, round_to: int) -> FasterRcnn:
    """A detector without the least important `ratio` of the channels of each group, in evaluation mode.

    What the outputs mean stays: classes, anchors and box coordinates lose nothing, nor does the output of res5, a sum
    over the whole stage.

    Args:
        model: on the CPU; it is left as it is.
        ratio: 0 to 1, of the channels that hang together; the widths left are rounded to multiples of `round_to`.
        importance: one of `IMPORTANCES`.
    """
    pruned = copy.deepcopy(model).eval().requires_grad_(True)
    side = 2 * max(*model.spec.anchors.strides, model.spec.input.divisor)  # px: a few cells on the coarsest level
    frozen_norms = {type(module) for module in pruned.modules() if isinstance(module, FrozenBatchNorm2d)}
    pruner = torch_pruning.pruner.BasePruner(
        DenseParts(pruned),
        torch.zeros(1, 3, side, side),
        importance=IMPORTANCES[importance](),
        pruning_ratio=ratio,
        ignored_layers=kept_layers(pruned),
        round_to=round_to,
        customized_pruners=dict.fromkeys(frozen_norms, FrozenNormPruner()),  # found by the exact type
        root_module_types=[nn.Conv2d, nn.Linear],
    )
    pruner.step()
    rebuilt = build_detector(pruned_spec(pruned))
    rebuilt.load_state_dict(pruned.state_dict())
    return rebuilt.eval()


def kept_layers(model: FasterRcnn) -> list[nn.Module]:
    """Layers whose outputs keep their number."""
    head, predictor = model.rpn.head, model.roi_heads.box_predictor
    kept: list[nn.Module] = [head.cls_logits, head.bbox_pred, predictor.cls_score, predictor.bbox_pred]
    box_head = model.roi_heads.box_head
    if isinstance(box_head, Res5Head):
        kept += [module for module in box_head.layer4[-1].children() if isinstance(module, nn.Conv2d)][-1:]  # type: ignore[index]
    return kept


def pruned_spec(model: FasterRcnn) -> DetectorSpec:
    """The spec of a `model` whose layers are narrower than its own spec says, which becomes the parent.

    Its fields that tell widths tell the new ones, and `pruned_widths` tells the rest.
    """
    spec = model.spec
    backbone, box_head = spec.backbone, spec.box_head
    if model.backbone.fpn is not None:
        backbone = dataclasses.replace(backbone, fpn_channels=model.rpn.head.in_channels)
    if isinstance(model.roi_heads.box_head, ConvFcHead):
        convolutions = [layer.out_channels for layer in _convolutions(model.roi_heads.box_head)]
        box_head = dataclasses.replace(box_head, conv_channels=tuple(convolutions))
    if box_head.kind != "res5":
        features = model.roi_heads.box_predictor.cls_score.in_features
        box_head = dataclasses.replace(box_head, representation_size=features)
    rpn = dataclasses.replace(
        spec.rpn, channels=max(layer.out_channels for layer in _convolutions(model.rpn.head.conv))
    )
    fields = {"backbone": backbone, "rpn": rpn, "box_head": box_head, "parent_digest": spec.digest()}
    wide = spec.replace(**fields, pruned_widths=None)
    return wide.replace(pruned_widths=changed_widths(model, build_detector(wide)) or None)


def _convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]
