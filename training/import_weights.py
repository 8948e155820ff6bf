"""torchvision's pretrained Faster R-CNNs (`torchvision:NAME` on the command lines) as detectors of ours.

The weights are torchvision's own files, looked for where torchvision keeps them and downloaded from where it does.
"""

from __future__ import annotations

import difflib
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.hub import download_url_to_file
from torchvision.models import get_model_weights
from torchvision.ops import FrozenBatchNorm2d

from runtime.errors import ArtifactError
from runtime.files import check_writable
from runtime.spec import DetectorSpec
from training.models.detectors import FasterRcnn, build_detector
from training.models.specs import spec_for

# names, and the epsilon that the frozen batch normalisations of these weights were trained with, where it is not the
# default: torchvision's overwrite_eps(model, 0.0)
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


def load_torchvision(name: str) -> tuple[FasterRcnn, DetectorSpec]:
    """The detector `name` with torchvision's COCO weights, in evaluation mode, and its spec.

    The file is taken from `torch.hub.get_dir()/checkpoints` ($TORCH_HOME/hub/checkpoints), and downloaded to there when
    it is missing.

    Raises:
        ArtifactError: an unknown name (the nearest is given), a file that is not these weights, or no file and no
            network.
    """
    if name not in TORCHVISION_NAMES:
        nearest = difflib.get_close_matches(name, TORCHVISION_NAMES, n=1, cutoff=0.0)[0]
        known = ", ".join(TORCHVISION_NAMES)
        raise ArtifactError(f"no torchvision weights {name!r}: the nearest is {nearest!r}; use one of {known}.")
    url = get_model_weights(name)["COCO_V1"].url
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if not file.is_file():
        _download(url, file)
    spec = spec_for(name)
    model = build_detector(spec).eval()
    try:
        model.load_state_dict(_modern_keys(_read_state(file)), strict=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ArtifactError(
            f"{file} does not hold the weights of {name} ({reason}): delete it to have it downloaded again."
        ) from error
    trained_eps = TORCHVISION_NAMES[name]
    if trained_eps is not None:
        _fold_norm_eps(model, trained_eps)
    return model, spec


def _download(url: str, file: Path) -> None:
    """Download to `file`, whole or not at all, checked against the hash in its name."""
    check_writable(file)
    hash_prefix = file.stem.rsplit("-", maxsplit=1)[-1]
    try:
        download_url_to_file(url, str(file), hash_prefix, progress=True)
    except (OSError, RuntimeError) as error:  # no network (URLError is an OSError); another hash
        reason = getattr(error, "reason", error)
        raise ArtifactError(
            f"cannot download {url} ({reason}): put the file {file.name} into {file.parent}, then run this again."
        ) from error


def _read_state(file: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise ArtifactError(
            f"{file} cannot be read as PyTorch weights: delete it to have it downloaded again."
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ArtifactError(f"{file} does not hold a state dict: delete it to have it downloaded again.")
    return dict(state)


def _modern_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict under the names of today's torchvision."""
    modern = {}
    for key, value in state.items():
        for pattern, replacement in LEGACY_KEYS:
            key = pattern.sub(replacement, key)
        modern[key] = value
    return modern


@torch.no_grad()
def _fold_norm_eps(model: FasterRcnn, trained_eps: float) -> None:
    """Rescale the frozen batch normalisations so that with their own epsilon they do what they did with `trained_eps`.

    A frozen normalisation is x * s + (bias - mean * s), s = weight / sqrt(variance + eps): only s changes.
    """
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            variance = module.running_var.double()
            factor = torch.sqrt((variance + module.eps) / (variance + trained_eps))
            module.weight.copy_(module.weight * factor)
