"""What the tests over the stand-ins share: frames, a detector that looks at its pixels, comparisons of all bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from runtime.backends.base import RawOutputs
from tests.helpers_onnx import small_spec, write_onnx

SIZES = [(48, 80), (200, 100), (64, 96), (31, 78), (120, 160)]


def frame(index: int, height: int = 48, width: int = 80) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (height, width, 3), np.uint8)


def frames_of_all_sizes(count: int = len(SIZES)) -> list[np.ndarray]:
    return [frame(index, *SIZES[index % len(SIZES)]) for index in range(count)]


def write_pixel_onnx(path: Path) -> None:
    """A detector whose first score is a mean of the image's pixels, so that wrong pixels show."""
    write_onnx(path, batch="B")
    model = onnx.load(path)
    spec = small_spec()
    scores = spec.outputs.detection_scores
    for node in model.graph.node:
        node.output[:] = ["given_scores" if name == scores else name for name in node.output]
    model.graph.initializer.append(helper.make_tensor("mean_axes", TensorProto.INT64, [3], [1, 2, 3]))
    model.graph.initializer.append(helper.make_tensor("mean_shape", TensorProto.INT64, [2], [-1, 1]))
    model.graph.initializer.append(helper.make_tensor("thousandth", TensorProto.FLOAT, [], [1e-3]))
    model.graph.node.extend(
        [
            helper.make_node("ReduceMean", ["images", "mean_axes"], ["pixel_mean"], keepdims=0),
            helper.make_node("Reshape", ["pixel_mean", "mean_shape"], ["pixel_column"]),
            helper.make_node("Mul", ["pixel_column", "thousandth"], ["pixel_score"]),
            helper.make_node("Add", ["given_scores", "pixel_score"], [scores]),
        ]
    )
    onnx.checker.check_model(model)
    onnx.save(model, path)


def check_equal(ours: RawOutputs, theirs: RawOutputs) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def outputs_of(detector, frames) -> RawOutputs:
    return detector.infer(detector.prepare(frames))
