"""FP32 files to convert, exported once per session: the demo as it ships, and a ResNet-50 with random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto

from calib.fp16 import convert_to_fp16
from export.to_onnx import export_onnx
from export.weights import load_weights
from runtime.conveyor.scene import render_scene
from tests.export.conftest import CASES, spread_detector
from tests.helpers import random_frame

RESNET = "fasterrcnn_resnet50_fpn"
SCENE_SIZES = ((480, 640), (720, 1280), (600, 400))  # 4:3, 16:9, portrait
RANDOM_SIZES = ((240, 320), (301, 170), (130, 500))


@dataclass(frozen=True)
class Converted:
    """An FP32 file, its model, the same in FP16, and frames on which it finds many objects."""

    path: Path
    model: ModelProto
    half: ModelProto
    frames: list[np.ndarray]


@pytest.fixture(scope="session")
def demo(tmp_path_factory) -> Converted:
    """MobileNetV3 with squeeze-and-excitation, trained."""
    path = tmp_path_factory.mktemp("calib") / "demo.onnx"
    model, spec = load_weights(None)
    export_onnx(model, spec, path)
    return _converted(path, [render_scene(7, index, size).frame for index, size in enumerate(SCENE_SIZES, 8)])


@pytest.fixture(scope="session")
def resnet(tmp_path_factory) -> Converted:
    path = tmp_path_factory.mktemp("calib") / "resnet.onnx"
    model = spread_detector(RESNET)
    export_onnx(model, model.spec, path, size=CASES[RESNET][0])
    return _converted(path, [random_frame(seed, *size) for seed, size in enumerate(RANDOM_SIZES)])


@pytest.fixture(params=["demo", "resnet"])
def converted(request) -> Converted:
    """Each of the two."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def changed_copy(demo) -> Callable[[Callable[[ModelProto], object]], ModelProto]:
    """A function: change -> a copy of the demo's FP32 model to which it was applied."""

    def copy_and_change(change: Callable[[ModelProto], object]) -> ModelProto:
        copy = ModelProto()
        copy.CopyFrom(demo.model)
        change(copy)
        return copy

    return copy_and_change


def _converted(path: Path, frames: list[np.ndarray]) -> Converted:
    model = onnx.load(path)
    return Converted(path, model, convert_to_fp16(model), frames)
