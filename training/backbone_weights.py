"""A classifier's weights for the backbone of a detector: torchvision's ImageNet ones by name, or a file's.

Of the classifier, the layers that the detector has are taken, each of them; the rest is reported. res5 of a C4 detector
takes layer4, fc6 and fc7 of VGG-16 its first two fully connected layers (Girshick, Fast R-CNN, 2015, section 2.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor
from torchvision.models import WeightsEnum, get_model_weights

from runtime.errors import ArtifactError
from runtime.spec import DetectorSpec, InputSpec
from training.models.detectors import FasterRcnn
from training.models.roi_heads import Res5Head
from training.norm_eps import fold_norm_eps
from training.weight_files import AGAIN, OWN, hub_file, read_state

# epsilon of the batch normalisations that a classifier was trained with, where it is not the default: torchvision's
TRAINED_EPS = {"mobilenet_v3_large": 1e-3}
VGG_HEAD = {"classifier.0": "fc6", "classifier.3": "fc7"}  # 512 x 7 x 7 -> 4096 -> 4096, cells in the same order
BATCH_COUNT = "num_batches_tracked"  # what frozen normalisations do not have
SHOWN = 4  # names of unused tensors in the report


class BackboneReport(NamedTuple):
    """What was done: the weights' name, how many tensors were taken, and the names of those that were not."""

    source: str
    taken: int
    unused: tuple[str, ...]

    def __str__(self) -> str:
        names = ", ".join(self.unused[:SHOWN]) + (", ..." if len(self.unused) > SHOWN else "")
        rest = f", {len(self.unused)} not used ({names})" if self.unused else ""
        return f"backbone from {self.source}: {self.taken} tensors taken{rest}"


def load_backbone_weights(model: FasterRcnn, source: str) -> BackboneReport:
    """Copy a classifier's weights into the backbone of `model`, and into the head that continues it.

    Args:
        source: a state-dict file (its name has a suffix .pth or .pt); or weights of torchvision,
            `ResNet50_Weights.IMAGENET1K_V2`, or the network, `resnet50`, for its default ones.

    Raises:
        ArtifactError: an unknown name, weights of another network or another input normalisation, no file and no
            network, or a file without a layer that the detector has (the first is named).
    """
    spec = model.spec
    if Path(source).suffix in (".pth", ".pt"):
        name, file, hint = source, Path(source), OWN
    else:
        weights = _named_weights(source, spec)
        name, file, hint = str(weights), hub_file(weights.url), AGAIN
    state = {key: value for key, value in read_state(file, hint).items() if not key.endswith(BATCH_COUNT)}
    taken = _copy(model, state, file)
    trained_eps = TRAINED_EPS.get(spec.backbone.name)
    if trained_eps is not None:
        fold_norm_eps(model.backbone.body, trained_eps)
    return BackboneReport(name, len(taken), tuple(sorted(state.keys() - taken)))


def _named_weights(name: str, spec: DetectorSpec) -> WeightsEnum:
    """torchvision's weights called `name`, which must be of the spec's network and normalisation."""
    network = spec.backbone.name
    try:
        known = get_model_weights(network)
    except ValueError as error:
        raise ArtifactError(
            f"torchvision has no weights for {network}: give a file, --backbone-weights FILE.pth."
        ) from error
    if spec.backbone.stride_in_1x1:
        raise ArtifactError(
            f"torchvision's {network} has its strides in the 3 x 3 convolutions, the spec in the 1 x 1 ones "
            "(spec.backbone.stride_in_1x1): leave that out, or give a file of such weights."
        )
    members = {network: known.DEFAULT, **{str(member): member for member in known}}  # type: ignore[attr-defined]
    if name not in members:
        raise ArtifactError(
            f"no weights {name!r} for the backbone {network}: use {', '.join(members)} or a file FILE.pth."
        )
    _check_normalisation(members[name], spec.input)
    return members[name]


def _check_normalisation(weights: WeightsEnum, rule: InputSpec) -> None:
    """Both normalise a picture's values to the same numbers."""
    transform = weights.transforms()
    mean, std = np.array(transform.mean), np.array(transform.std)
    theirs = np.concatenate([mean / std, 1 / (255 * std)])
    ours = np.concatenate([np.array(rule.mean) / rule.std, rule.value_scale / np.array(rule.std)])
    if not np.allclose(ours, theirs, rtol=1e-5):
        raise ArtifactError(
            f"{weights} expects mean {transform.mean} and std {transform.std} of values from 0 to 1, the spec has "
            f"{rule.mean} and {rule.std} with value_scale {rule.value_scale:g}: choose other weights, or change the "
            "spec's input."
        )


def _copy(model: FasterRcnn, state: Mapping[str, Tensor], file: Path) -> set[str]:
    """Copy each tensor that `model` needs out of `state`; the names of those that were needed."""
    taken = set()
    for target, key in _wanted(model):
        own = [name for name in (key, key.removeprefix("features.")) if name in state]  # ZF-Net's may have no prefix
        if not own:
            raise ArtifactError(
                f"{file} lacks {key}: expected the weights of {model.spec.backbone.name} under torchvision's names."
            )
        value = state[own[0]]
        if value.shape != target.shape:
            raise ArtifactError(
                f"{file} has {own[0]} of shape {list(value.shape)}: expected {list(target.shape)}, "
                f"{model.spec.backbone.name}'s."
            )
        target.data.copy_(value)
        taken.add(own[0])
    return taken


def _wanted(model: FasterRcnn) -> list[tuple[Tensor, str]]:
    """Each tensor of the detector that a classifier has, and its name there."""
    name = model.spec.backbone.name
    prefix = "" if name.startswith("resnet") else "features."
    wanted = [(tensor, prefix + key) for key, tensor in model.backbone.body.state_dict(keep_vars=True).items()]
    head = model.roi_heads.box_head
    if isinstance(head, Res5Head):
        wanted += [(tensor, f"layer4.{key}") for key, tensor in head.layer4.state_dict(keep_vars=True).items()]
    elif model.backbone.fpn is None and name == "vgg16":
        wanted += _vgg_head(model)
    return [(tensor, key) for tensor, key in wanted if not key.endswith(BATCH_COUNT)]


def _vgg_head(model: FasterRcnn) -> list[tuple[Tensor, str]]:
    """fc6 and fc7, where they have VGG-16's sizes."""
    layers = dict(model.roi_heads.box_head.named_children())
    sizes = [tuple(layers[name].weight.shape) for name in VGG_HEAD.values() if name in layers]  # type: ignore[arg-type]
    if sizes != [(4096, 512 * 7 * 7), (4096, 4096)]:
        return []
    return [
        (parameter, f"{theirs}.{part}")
        for theirs, ours in VGG_HEAD.items()
        for part, parameter in layers[ours].named_parameters()
    ]
