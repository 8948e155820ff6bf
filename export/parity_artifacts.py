"""The files that are compared: found, opened, and seen to be forms of one detector on one canvas.

A checkpoint takes images of any size; it is run on the fixed canvas that the files beside it have.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch

from export.canvas import Size, choose_canvas
from export.stages import StagedDetector
from export.stages_onnx import OnnxStages
from export.stages_torch import TorchStages
from runtime.backends.onnxruntime import read_spec
from runtime.detector import BACKENDS, PLANS, Detector, open_detector
from runtime.errors import ArtifactError
from runtime.evaluate import unique_names
from runtime.spec import DetectorSpec
from training.backend import TorchBackend
from training.checkpoint import load_checkpoint
from training.models.detectors import FasterRcnn

CHECKPOINTS, ONNX_FILES = (".pt", ".pth"), (".onnx",)
ORDER = (*CHECKPOINTS, *ONNX_FILES, *PLANS)  # in a folder, the first is what the others are compared with
PRECISIONS = ("fp32", "fp16", "mixed", "int8")  # likewise


@dataclass(frozen=True, eq=False)
class Artifact:
    """An open detector. spec: with the canvas it runs on; stages: None where only its outputs can be seen."""

    path: Path
    name: str
    spec: DetectorSpec
    detector: Detector
    stages: StagedDetector | None
    note: str


@dataclass(frozen=True, eq=False)
class _Read:
    """A file whose spec is known; `model` of a checkpoint, `detector` of a plan."""

    path: Path
    spec: DetectorSpec
    model: FasterRcnn | None = None
    detector: Detector | None = None


def artifact_paths(given: Sequence[Path]) -> list[Path]:
    """The files, and those in the folders, each once; in a folder checkpoints come first, then FP32 files.

    Raises:
        ArtifactError: one is missing, a folder holds none, or there are fewer than two.
    """
    paths: list[Path] = []
    for path in given:
        found = _in_folder(path) if path.is_dir() else [path]
        paths += [one for one in found if one not in paths]
    for path in paths:
        if path.suffix.lower() not in BACKENDS:
            kinds = ", ".join(ORDER)
            raise ArtifactError(
                f"{path} has the suffix {path.suffix or '(none)'}: expected a detector, one of {kinds}."
            )
        if not path.is_file():
            raise ArtifactError(f"{path} does not exist: expected a detector, one of {', '.join(ORDER)}.")
    if len(paths) < 2:
        what = f"only {paths[0]}" if paths else "no artifact"
        raise ArtifactError(f"{what} was given: give two or more, or a folder with two or more.")
    return paths


def open_artifacts(paths: Sequence[Path], *, threads: int | None, stack: contextlib.ExitStack) -> list[Artifact]:
    """Open all of them on one canvas; `stack` closes them.

    Raises:
        ArtifactError: a file that cannot be used, or files that are not forms of one detector.
        BackendUnavailableError: what a file needs is not on this machine.
    """
    files = [_read(path, threads, stack) for path in paths]
    for file in files[1:]:
        _check_same_network(files[0], file)
    canvas = _common_canvas(files)
    names = unique_names(paths)
    return [_opened(file, name, canvas, threads, stack) for file, name in zip(files, names, strict=True)]


def _in_folder(folder: Path) -> list[Path]:
    found = [path for path in folder.iterdir() if path.is_file() and path.suffix.lower() in ORDER]
    if not found:
        raise ArtifactError(f"{folder} holds no artifact: expected files that end in {', '.join(ORDER)}.")
    return sorted(found, key=_place_in_folder)


def _place_in_folder(path: Path) -> tuple[int, int, str]:
    is_onnx = path.suffix.lower() in ONNX_FILES
    precision = PRECISIONS.index(read_spec(path).precision) if is_onnx else 0
    return ORDER.index(path.suffix.lower()), precision, path.name


def _read(path: Path, threads: int | None, stack: contextlib.ExitStack) -> _Read:
    suffix = path.suffix.lower()
    if suffix in CHECKPOINTS:
        if threads is not None:
            torch.set_num_threads(threads)
        model, spec = load_checkpoint(path)
        return _Read(path, spec, model=model.cpu().eval())
    if suffix in ONNX_FILES:
        return _Read(path, read_spec(path))
    detector = stack.enter_context(open_detector(path, threads=threads))
    return _Read(path, detector.spec, detector=detector)


def _check_same_network(first: _Read, other: _Read) -> None:
    if first.spec.class_names != other.spec.class_names:
        raise ArtifactError(
            f"{other.path} detects {_listed(other.spec.class_names)}, and {first.path} detects "
            f"{_listed(first.spec.class_names)}: give artifacts of one detector, with the same list of classes."
        )
    facts = [_facts(file.spec) for file in (first, other)]
    for title, value in facts[0].items():
        if facts[1][title] != value:
            raise ArtifactError(
                f"{other.path} and {first.path} are two networks: the {title} is {_shown(facts[1][title], value)} in "
                f"the one and {_shown(value, facts[1][title])} in the other; give artifacts of one detector."
            )


def _facts(spec: DetectorSpec) -> dict[str, Any]:
    """What two forms of one network have in common, so that the values between their stages have the same shapes."""
    return {
        "architecture": spec.architecture,
        "backbone": spec.backbone,
        "depth of the RPN": spec.rpn.conv_depth,
        "number of anchors per cell": spec.anchors.per_cell,
        "pooled size": spec.roi_pooling.output_size,
        "box head": spec.box_head,
    }


def _common_canvas(files: Sequence[_Read]) -> Size:
    """That of the files with a fixed one; of checkpoints alone, what they would be exported with."""
    fixed = [file for file in files if file.spec.input.height is not None]
    for file in fixed[1:]:
        if _canvas(file) != _canvas(fixed[0]):
            raise ArtifactError(
                f"{file.path} has a canvas of {_size(_canvas(file))}, and {fixed[0].path} has one of "
                f"{_size(_canvas(fixed[0]))}: stages can only be compared on one; export one of them again with --size."
            )
    return choose_canvas((fixed or files)[0].spec.input, None)


def _opened(file: _Read, name: str, canvas: Size, threads: int | None, stack: contextlib.ExitStack) -> Artifact:
    height, width = canvas
    spec = file.spec.replace(input=dataclasses.replace(file.spec.input, height=height, width=width))
    if file.detector is not None:
        note = "a plan: only its preprocessing and its final boxes can be seen"
        return Artifact(file.path, name, spec, file.detector, None, note)
    if file.model is not None:
        stages = TorchStages(file.model, spec)
        detector = stack.enter_context(Detector(TorchBackend(stages.model, spec)))
        note = (
            "" if file.spec.input.height is not None else f"takes any size, and was run on the canvas {_size(canvas)}"
        )
        return Artifact(file.path, name, spec, detector, stages, note)
    detector = stack.enter_context(open_detector(file.path, providers=["cpu"], threads=threads))
    return Artifact(file.path, name, spec, detector, OnnxStages(onnx.load(file.path), spec, threads=threads), "")


def _canvas(file: _Read) -> tuple[int | None, int | None]:
    return file.spec.input.height, file.spec.input.width


def _size(canvas: tuple[int | None, int | None]) -> str:
    return f"{canvas[0]}x{canvas[1]}"


def _shown(value: Any, other: Any) -> str:
    """`value`, or, of a part of a spec, its fields that differ from those of `other`."""
    if not dataclasses.is_dataclass(value):
        return str(value)
    names = [one.name for one in dataclasses.fields(value)]
    return ", ".join(f"{name} {getattr(value, name)}" for name in names if getattr(value, name) != getattr(other, name))


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
