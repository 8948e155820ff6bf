"""FP32 files to convert, exported once per session: the demo as it ships, and a ResNet-50 with random weights.

And the ranges of their values on three pictures, for INT8.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import ModelProto

from calib.convert import FP16, FP32, LOWEST, Calibration, Source, convert, read_source
from calib.fp16 import convert_to_fp16
from calib.histogram import ValueStatistics
from calib.images import CalibrationImages
from calib.statistics import collect_statistics
from export.to_onnx import export_onnx
from export.weights import load_weights
from runtime.conveyor.dataset import write_dataset
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


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A detector with the statistics of all values that INT8 and FP16 ask for, on its frames."""

    exported: Converted
    source: Source
    statistics: dict[str, ValueStatistics]
    images: CalibrationImages

    @property
    def calibration(self) -> Calibration:
        """Ranges from the least to the largest number."""
        return Calibration(
            ranges={name: (item.low, item.high) for name, item in self.statistics.items()},
            channel_means={name: item.channel_mean for name, item in self.statistics.items()},
            method="minmax",
            images=len(self.images),
            images_digest=self.images.digest,
        )

    def assignment(self, precision: str) -> dict[str, str]:
        """All groups in the lowest precision; of "mixed", one of four in FP16 and one of eight in FP32."""
        mix = {1: FP16, 5: FP16, 7: FP32} if precision == "mixed" else {}
        return {name: mix.get(index % 8, LOWEST[precision]) for index, name in enumerate(self.source.names)}

    @cache  # noqa: B019  (the fixture lives as long as the session)
    def converted(self, precision: str, flavour: str = "tensorrt") -> ModelProto:
        """The file; made once, so not to be changed."""
        return convert(self.source, self.assignment(precision), precision, self.calibration, flavour=flavour)


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


@pytest.fixture(scope="session")
def calibrated_demo(demo, tmp_path_factory) -> Calibrated:
    return calibrate(demo.model, demo, tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="session")
def calibrated_resnet(resnet, tmp_path_factory) -> Calibrated:
    return calibrate(resnet.model, resnet, tmp_path_factory.mktemp("pictures"))


@pytest.fixture(params=["demo", "resnet"])
def calibrated(request) -> Calibrated:
    """Each of the two."""
    return request.getfixturevalue(f"calibrated_{request.param}")


def calibrate(model: ModelProto, exported: Converted, folder: Path) -> Calibrated:
    """Measure `model` on the frames of `exported`, which are written to `folder`."""
    paths = [folder / f"{index}.png" for index in range(len(exported.frames))]
    for path, frame in zip(paths, exported.frames, strict=True):
        assert cv2.imwrite(str(path), frame)
    images = CalibrationImages(tuple(paths), None, None, "0" * 64, 0.1)
    source = read_source(model)
    asked = (source.values_to_measure("tensorrt"), source.values_to_measure("cpu"), source.half_values())
    names = list(dict.fromkeys(name for names in asked for name in names))
    return Calibrated(exported, source, collect_statistics(source.model, names, images, threads=1, cache=False), images)


@pytest.fixture(scope="session")
def belt(tmp_path_factory) -> Path:
    """A data set of the demo's classes, 36 scenes of 240x320 px: annotations.json beside images/."""
    folder = tmp_path_factory.mktemp("belt")
    return write_dataset(folder, 36, 77, size_hw=(240, 320), image_format="png", workers=1).parent


@pytest.fixture(scope="session")
def calibration_cache(tmp_path_factory) -> Path:
    """A folder for $EDGERCNN_CACHE that tests share, so that the ranges of `belt` are measured once."""
    return tmp_path_factory.mktemp("cache")


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
