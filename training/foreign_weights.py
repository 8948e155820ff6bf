"""Detectors that others trained, by name: `torchvision:NAME`, `torchvision:NAME=FILE`, `detectron2:FILE`."""

from __future__ import annotations

from collections.abc import Sequence

from runtime.spec import DetectorSpec
from training.import_detectron2 import ORIGINS, load_detectron2
from training.import_weights import load_torchvision
from training.models.detectors import FasterRcnn

TORCHVISION = "torchvision"
KINDS = (TORCHVISION, *ORIGINS)
FORMS = "torchvision:NAME[=FILE]|detectron2:FILE"  # for the help of command lines


def is_foreign(source: str) -> bool:
    """Whether `source` names weights that are no checkpoint of ours."""
    return source.partition(":")[0] in KINDS


def load_foreign(source: str, class_names: Sequence[str] | None = None) -> tuple[FasterRcnn, DetectorSpec]:
    """The detector in evaluation mode, and its spec.

    Args:
        source: `torchvision:NAME`; `torchvision:NAME=FILE`, a state dict of that model; `detectron2:FILE`, for models
            whose ResNet has the model zoo's usual origin, or `detectron2-torchvision:FILE`, for torchvision's.
        class_names: of the foreign classes; None: those that the weights are known for, else "class 1", ...

    Raises:
        ArtifactError: weights that are not there, cannot be read, or are of another detector.
        UserError: another number of class names than there are classes.
    """
    kind, _, rest = source.partition(":")
    if kind == TORCHVISION:
        return load_torchvision(rest, class_names)
    return load_detectron2(rest, class_names, kind)
