"""Detectors exported once per test session: three architectures, each on a canvas of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from export.to_onnx import export_onnx
from export.verify import Picture
from runtime.backends.onnxruntime import read_spec
from runtime.command import run_command
from runtime.spec import DetectorSpec
from tests.helpers import random_frame, spread_weights
from training.models.detectors import FasterRcnn, build_detector
from training.models.specs import spec_for

# name: (canvas, changes to the preset that make it quick)
CASES = {
    "conveyor": ((192, 256), {"input": {"min_size": 192, "max_size": 256}}),
    "fasterrcnn_mobilenet_v3_large_320_fpn": ((160, 320), {"input": {"min_size": 160, "max_size": 320}}),
    "fasterrcnn_resnet50_fpn": (
        (128, 192),
        {"input": {"min_size": 128, "max_size": 192}, "rpn": {"pre_nms_top_n": 200, "post_nms_top_n": 60}},
    ),
}


@dataclass(frozen=True)
class Exported:
    """A detector in PyTorch and the file it was exported to."""

    model: FasterRcnn
    spec: DetectorSpec  # of the file, with the canvas
    path: Path


def spread_detector(name: str, seed: int = 3) -> FasterRcnn:
    """A detector of CASES whose random weights find dozens of objects."""
    torch.manual_seed(seed)
    return spread_weights(build_detector(spec_for(name, **CASES[name][1])), seed)


@pytest.fixture(scope="session", params=CASES)
def exported(request, export_of) -> Exported:
    """Each of CASES, with any batch."""
    return export_of(request.param)


@pytest.fixture(scope="session")
def conveyor(export_of) -> Exported:
    """The small one alone."""
    return export_of("conveyor")


@pytest.fixture(scope="session")
def export_of(tmp_path_factory):
    """A function: name of a case -> Exported, made at the first call."""
    done: dict[str, Exported] = {}

    def export_once(name: str) -> Exported:
        if name not in done:
            model = spread_detector(name)
            path = tmp_path_factory.mktemp("exported") / f"{name}.onnx"
            pictures = [Picture("random", random_frame(5, 240, 320))]
            assert export_onnx(model, model.spec, path, size=CASES[name][0], pictures=pictures) is not None
            done[name] = Exported(model, read_spec(path), path)
        return done[name]

    return export_once


@pytest.fixture
def refusal(capsys) -> Callable[[Callable[..., int], list[str]], str]:
    """A function: (main, its options) -> the one sentence with which it refuses them, exit code 2."""

    def refuse(main: Callable[..., int], options: list[str]) -> str:
        capsys.readouterr()
        assert run_command(main, options) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    return refuse
