"""torchvision's Faster R-CNNs as detectors of ours: `torchvision:NAME`, or `torchvision:NAME=FILE` for an own file.

The weights of NAME are torchvision's own files, looked for where torchvision keeps them and downloaded from where it
does. FILE is a state dict of such a model, fine-tuned, with any number of classes.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor
from torchvision.models import get_model_weights

from runtime.errors import ArtifactError
from runtime.spec import DetectorSpec
from training.checkpoint import load_weights
from training.class_names import class_names_for
from training.models.detectors import FasterRcnn, build_detector
from training.models.specs import COCO_CLASS_NAMES, spec_for
from training.norm_eps import fold_norm_eps
from training.weight_files import AGAIN, hub_file, read_state

# names, and the epsilon that the frozen batch normalisations of these weights were trained with, where it is not the
# default: torchvision's overwrite_eps(model, 0.0), also of what is fine-tuned from them
TORCHVISION_NAMES: dict[str, float | None] = {
    "fasterrcnn_resnet50_fpn": 0.0,
    "fasterrcnn_resnet50_fpn_v2": None,
    "fasterrcnn_mobilenet_v3_large_fpn": None,
    "fasterrcnn_mobilenet_v3_large_320_fpn": None,
}

# files from before torchvision 0.13 miss one level in the names of convolutions
LEGACY_KEYS = (
    (re.compile(r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$"), r"\1.0.\2"),
    (re.compile(r"^(rpn\.head\.conv)\.(weight|bias)$"), r"\1.0.0.\2"),
)
CLASS_SCORES = "roi_heads.box_predictor.cls_score.weight"  # [K + 1, F]
BATCH_COUNT = "num_batches_tracked"
BODY_BATCH_COUNT = re.compile(rf"backbone\.body\..*\.{BATCH_COUNT}")  # there if the normalisations were not frozen


def load_torchvision(source: str, class_names: Sequence[str] | None = None) -> tuple[FasterRcnn, DetectorSpec]:
    """The detector in evaluation mode, and its spec.

    Without a file, its weights are torchvision's COCO ones, from `torch.hub.get_dir()/checkpoints`
    ($TORCH_HOME/hub/checkpoints), and downloaded to there when they are missing.

    Args:
        source: `NAME` or `NAME=FILE`, a state dict of the model NAME, or a checkpoint that holds one under "model".
        class_names: of the foreground classes; None: COCO's for torchvision's weights, "class 1", ... for a file.

    Raises:
        ArtifactError: an unknown name (the nearest is given), a file that is not these weights, or no file and no
            network.
        UserError: another number of class names than there are classes.
    """
    name, _, own = source.partition("=")
    if name not in TORCHVISION_NAMES:
        nearest = difflib.get_close_matches(name, TORCHVISION_NAMES, n=1, cutoff=0.0)[0]
        known = ", ".join(TORCHVISION_NAMES)
        raise ArtifactError(f"no torchvision weights {name!r}: the nearest is {nearest!r}; use one of {known}.")
    if own:
        file, hint = Path(own), f"give a state dict of torchvision's {name}"
    else:
        file, hint = hub_file(get_model_weights(name)["COCO_V1"].url), AGAIN
    state = _modern_keys(read_state(file, hint))
    if CLASS_SCORES not in state:
        raise ArtifactError(f"{file} does not hold the weights of {name}, it lacks {CLASS_SCORES}: {hint}.")
    shape = list(state[CLASS_SCORES].shape)
    if len(shape) != 2 or shape[0] < 2:
        raise ArtifactError(f"{file} has {CLASS_SCORES} of shape {shape}: expected classes + 1 x features; {hint}.")
    num_classes = shape[0] - 1
    names = class_names_for(num_classes, class_names, is_published=num_classes == len(COCO_CLASS_NAMES))
    return _loaded(name, names, state, file, hint)


def _loaded(
    name: str, class_names: tuple[str, ...], state: dict[str, Tensor], file: Path, hint: str
) -> tuple[FasterRcnn, DetectorSpec]:
    is_frozen = not any(BODY_BATCH_COUNT.fullmatch(key) for key in state)
    spec = spec_for(name, class_names)
    if not is_frozen:
        spec = spec_for(name, class_names, backbone={"norm": "batch_norm"})
    model = build_detector(spec).eval()
    load_weights(model, state, file, hint)
    trained_eps = TORCHVISION_NAMES[name]
    if trained_eps is not None and is_frozen:
        fold_norm_eps(model, trained_eps)
    return model, spec


def _modern_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict under the names of today's torchvision."""
    modern = {}
    for key, value in state.items():
        for pattern, replacement in LEGACY_KEYS:
            key = pattern.sub(replacement, key)
        modern[key] = value
    return modern
