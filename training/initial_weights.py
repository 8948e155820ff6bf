"""What a detector begins training with: random weights, a whole detector's, or a classifier's in its backbone."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from runtime.errors import UserError
from runtime.spec import DetectorSpec
from training.backbone_weights import load_backbone_weights
from training.checkpoint import load_weights, read_checkpoint
from training.foreign_weights import FORMS, is_foreign, load_foreign
from training.models.detectors import FasterRcnn
from training.models.roi_heads import TwoMlpHead
from training.settings import FOCAL_LOSS, TrainSettings

DEFAULT_ARCHITECTURE = "conveyor"
OBJECTNESS_PRIOR = 0.01  # of an anchor before focal loss has taught it anything
PREDICTOR = "roi_heads.box_predictor."  # the layers that depend on the classes


def add_weight_arguments(group: argparse._ArgumentGroup) -> None:
    """Initial weights as options of a command line."""
    group.add_argument(
        "--weights",
        metavar=f"PATH|{FORMS}",
        help="start from this checkpoint of the same spec, or from a detector that others trained, not from scratch",
    )
    group.add_argument(
        "--backbone-weights",
        metavar="NAME|FILE",
        help="start the backbone from a classifier: torchvision's by name, like resnet50 or "
        "ResNet50_Weights.IMAGENET1K_V1, or a state-dict file (.pth)",
    )


def foreign_spec(arguments: argparse.Namespace, class_names: Sequence[str]) -> DetectorSpec | None:
    """The spec of the detector that --weights names, for `class_names`; None where the architecture is free.

    Raises:
        ArtifactError: a file that cannot be used. UserError: --architecture next to such weights.
    """
    if arguments.weights is None or not is_foreign(arguments.weights):
        return None
    if arguments.architecture != DEFAULT_ARCHITECTURE:
        raise UserError(
            f"--weights {arguments.weights} brings its own architecture, --architecture {arguments.architecture} is "
            "another: leave one of them out; --set changes single fields."
        )
    return load_foreign(arguments.weights)[1].replace(class_names=tuple(class_names))


@torch.no_grad()
def adapt_to_settings(model: FasterRcnn, settings: TrainSettings) -> None:
    """What losses ask of a new detector, before it is given other weights: dropout, and focal loss's prior.

    With focal loss all anchors take part, and nearly all are background: the bias of objectness begins at the prior's
    logit, or the first losses would be a hundred times those of the detector.
    Ref: Girshick, Fast R-CNN (2015); Lin et al., Focal Loss (2017), section 4.1.
    """
    head = model.roi_heads.box_head
    if isinstance(head, TwoMlpHead):
        head.dropout = settings.box_dropout
    if settings.rpn_objectness_loss == FOCAL_LOSS:
        bias = model.rpn.head.cls_logits.bias
        assert isinstance(bias, Tensor), "an objectness layer without bias"
        bias[-model.spec.anchors.per_cell :] = math.log(OBJECTNESS_PRIOR / (1 - OBJECTNESS_PRIOR))


def set_initial_weights(model: FasterRcnn, arguments: argparse.Namespace) -> str:
    """Give `model` the weights that the command line names, and say which, for the checkpoint's notes.

    Raises:
        ArtifactError: a file that cannot be used. UserError: both kinds of weights were given.
    """
    source, backbone = arguments.weights, arguments.backbone_weights
    if source is not None and backbone is not None:
        raise UserError("--weights and --backbone-weights were both given: leave one of them out.")
    if backbone is not None:
        return _said(str(load_backbone_weights(model, backbone)))
    if source is None:
        return "random"
    if is_foreign(source):
        return _said(_load_foreign(model, source))
    load_weights(model, read_checkpoint(source)["model"], source)
    return source


def _load_foreign(model: FasterRcnn, source: str) -> str:
    """All of a foreign detector's weights; those of the last layers only for the same classes."""
    theirs, spec = load_foreign(source)
    weights = theirs.state_dict()
    note = source
    if spec.class_names != model.spec.class_names:
        weights |= {name: value for name, value in model.state_dict().items() if name.startswith(PREDICTOR)}
        note += f", but for the last layers: its {spec.num_classes} classes are others"
    load_weights(model, weights, source, hint="take back the --set that changes these layers")
    return note


def _said(note: str) -> str:
    print(f"weights  {note}")
    return note
