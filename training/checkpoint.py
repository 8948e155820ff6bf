"""Checkpoints: weights together with the DetectorSpec that says what they are.

File: a torch zip of plain data, `format`, `spec` (canonical JSON), `digest` (of the spec), `model` (state dict),
`training` (optimizer and position, or None) and `notes` (how it was made). Read with weights_only: no code runs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from runtime.errors import ArtifactError, SpecError
from runtime.files import atomic_output
from runtime.spec import DetectorSpec
from training.models.detectors import FasterRcnn, build_detector

FORMAT = "edgercnn"
HINT = "give a checkpoint written by training/train.py"


def save_checkpoint(
    path: str | os.PathLike[str],
    model: nn.Module,
    spec: DetectorSpec,
    *,
    half: bool = False,
    training_state: Mapping[str, Any] | None = None,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint, whole or not at all.

    Args:
        half: store matrices and convolution kernels as float16; vectors (biases, batch-norm statistics) stay float32.

    Raises:
        OutputError: the path cannot be written.
    """
    weights = {name: _stored(value.detach().cpu(), half) for name, value in model.state_dict().items()}
    content = {
        "format": FORMAT,
        "spec": spec.to_json(),
        "digest": spec.digest(),
        "model": weights,
        "training": None if training_state is None else dict(training_state),
        "notes": {name: str(value) for name, value in (notes or {}).items()},
    }
    with atomic_output(path) as temporary:
        torch.save(content, temporary)


def load_checkpoint(path: str | os.PathLike[str]) -> tuple[FasterRcnn, DetectorSpec]:
    """The detector in evaluation mode, float32, on the CPU, and its spec.

    Raises:
        ArtifactError: missing, empty, truncated or foreign file, or weights that do not belong to the spec.
    """
    content = read_checkpoint(path)
    spec = DetectorSpec.from_json(content["spec"])
    model = build_detector(spec)
    load_weights(model, content["model"], path)
    return model.eval(), spec


def load_weights(
    model: nn.Module, weights: Mapping[str, Tensor], path: str | os.PathLike[str], hint: str = HINT
) -> None:
    """Copy a state dict into `model`; every key and shape must agree.

    Args:
        hint: what to do next, the end of the sentence of an error.

    Raises:
        ArtifactError: naming the first key that is missing, too many or of another shape.
    """
    expected = model.state_dict()
    for name in sorted(expected.keys() | weights.keys()):
        if name not in weights:
            raise ArtifactError(f"{path} lacks the weights {name} that its spec asks for; {hint}.")
        if name not in expected:
            raise ArtifactError(f"{path} has weights {name} that its spec does not know; {hint}.")
        got, want = tuple(weights[name].shape), tuple(expected[name].shape)
        if got != want:
            raise ArtifactError(f"{path} has weights {name} of shape {got}, its spec asks for {want}; {hint}.")
    model.load_state_dict({name: value.to(expected[name].dtype) for name, value in weights.items()})


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The file's content, checked to be ours and whole; the spec is checked against its digest.

    Raises:
        ArtifactError: missing, empty, truncated or foreign file.
    """
    path = Path(path)
    if not path.is_file():
        raise ArtifactError(f"{path} is not there: expected a checkpoint; train one with python training/train.py.")
    if path.stat().st_size == 0:
        raise ArtifactError(f"{path} is empty: expected a checkpoint; {HINT}.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen types here, all meaning that this is no whole file of plain data
        message = f"{path} cannot be read as a checkpoint: it is truncated, or holds something other than plain data"
        raise ArtifactError(f"{message}; {HINT}.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        message = f"{path} is a torch file but not an EdgeRCNN checkpoint (it carries no spec)"
        raise ArtifactError(f"{message}; {HINT}, or torchvision:NAME for torchvision's weights.")
    for key, kind in (("spec", str), ("digest", str), ("model", Mapping)):
        if not isinstance(content.get(key), kind):
            raise ArtifactError(f"{path} has no usable {key!r} in it: expected a {kind.__name__}; {HINT}.")
    if not all(isinstance(value, Tensor) for value in content["model"].values()):
        raise ArtifactError(f"{path} has something other than tensors among its weights; {HINT}.")
    try:
        digest = DetectorSpec.from_json(content["spec"]).digest()
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error
    if digest != content["digest"]:
        raise ArtifactError(f"{path} has a spec that does not match its digest: it was altered after training; {HINT}.")
    return content


def _stored(value: Tensor, half: bool) -> Tensor:
    return value.half() if half and value.is_floating_point() and value.dim() >= 2 else value
