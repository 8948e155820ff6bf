"""Activations and weights that FP16 cannot hold: found by measuring, kept in FP32, and the detections stay."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, numpy_helper

from calib.artifact import element_types, spec_of_model
from calib.convert import FP16, FP32, INT8, convert
from calib.fp16 import LARGEST, with_types
from calib.histogram import ValueStatistics
from calib.images import CalibrationImages
from calib.measure import HEADROOM, RangeRule, find_beyond_fp16, measure
from calib.rounding import round_like_gpu
from calib.sensitivity import Job
from tests.calib.conftest import Calibrated, calibrate
from tests.calib.graphs import graph_of
from tests.calib.tensorrt_rules import check_tensorrt_rules
from tests.calib.test_convert import computed_in, detect, share_matched
from tests.calib.test_groups import SHAPES, c4_nodes

FACTOR = 4e4  # under which the weights still fit
# results of the first are too large, the second hands them on, the third reads them
FIRST, RELU, SECOND = (f"backbone/body/2/block/{name}" for name in ("0/0/Conv", "0/2/Relu", "1/0/Conv"))


def scale_layer(model, layer, factor, *, bias):
    (node,) = [item for item in model.graph.node if item.name == layer]
    names = node.input[1:3] if bias else node.input[1:2]
    for item in model.graph.initializer:
        if item.name in names:
            item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item) * np.float32(factor), item.name))


@pytest.fixture(scope="module")
def beyond(demo, tmp_path_factory) -> Calibrated:
    """The demo with the results of a layer times FACTOR, and the weights of the next divided by it."""
    model = ModelProto()
    model.CopyFrom(demo.model)
    scale_layer(model, FIRST, FACTOR, bias=True)
    scale_layer(model, SECOND, 1 / FACTOR, bias=False)
    return calibrate(model, demo, tmp_path_factory.mktemp("beyond"))


@pytest.fixture(scope="module")
def kept(beyond) -> Calibrated:
    """The same, with what was found to be beyond FP16."""
    found = find_beyond_fp16(beyond.source.model.graph, beyond.statistics)
    return dataclasses.replace(beyond, source=dataclasses.replace(beyond.source, beyond_fp16=tuple(found)))


@pytest.fixture(scope="module")
def in_fp32(demo):
    return detect(demo.path, demo.frames)


def converted(calibrated, kind, precision):
    source = calibrated.source
    return convert(source, dict.fromkeys(source.names, kind), precision, calibrated.calibration)


def nodes_in_fp32(model):
    types = element_types(with_types(model).graph)
    return {
        node.name for node in model.graph.node if node.op_type != "Cast" and types[node.output[0]] == TensorProto.FLOAT
    }


def test_the_layer_its_activation_and_the_reader_are_found(beyond, calibrated_demo):
    found = find_beyond_fp16(beyond.source.model.graph, beyond.statistics)
    assert set(found) == {FIRST, RELU, SECOND}
    largest = beyond.statistics[FIRST].largest
    assert largest > 2 * LARGEST
    assert found[FIRST] == f"its result reaches {largest:g} on the images, and FP16 ends at 65504"
    read = beyond.statistics[RELU].largest
    assert found[SECOND] == f"its input reaches {read:g} on the images, and FP16 ends at 65504"
    assert find_beyond_fp16(calibrated_demo.source.model.graph, calibrated_demo.statistics) == {}


def test_measuring_finds_them_for_fp16_and_mixed_and_not_for_int8(beyond):
    rule = RangeRule("minmax", 100.0, correct_bias=True)
    images = CalibrationImages(beyond.images.paths[:1], None, None, "1" * 64, 0.1)
    for precision, expected in (("fp16", {FIRST, RELU, SECOND}), ("mixed", {FIRST, RELU, SECOND}), ("int8", set())):
        measured = measure(beyond.source, Job(precision, "tensorrt"), images, rule, threads=1)
        assert set(measured.beyond) == set(measured.source.beyond_fp16) == expected
        assert bool(measured.calibration.ranges) == (precision != "fp16")


@pytest.mark.parametrize(("kind", "precision"), [(FP16, "fp16"), (FP16, "mixed"), (INT8, "mixed")])
def test_they_and_no_others_stay_fp32(kept, calibrated_demo, kind, precision):
    """But for the activation behind the last of them (see `calib.convert`)."""
    model = converted(kept, kind, precision)
    more = nodes_in_fp32(model) - nodes_in_fp32(converted(calibrated_demo, kind, precision))
    behind = SECOND.replace("0/Conv", "2/Relu")
    added = {f"{name}/{end}" for name in (FIRST, RELU) for end in ("quantized", "dequantized")}
    assert {name for name in more if "quantized" not in name} == {FIRST, RELU, SECOND, behind}
    plan = spec_of_model(model).precision_plan
    assert {FIRST, SECOND} <= set(plan.int8 if kind == INT8 else plan.fp32)
    assert computed_in(model) == {name: own for own in (INT8, FP16, FP32) for name in getattr(plan, own)}
    if kind == INT8:
        assert added & more
        check_tensorrt_rules(model)


@pytest.mark.parametrize("kind", [FP16, INT8])
@pytest.mark.parametrize("rounded", [False, True], ids=["as it is", "as on a GPU"])
def test_detections_are_those_of_fp32(kept, in_fp32, kind, rounded, tmp_path):
    share, count = share_matched(
        in_fp32, detect(written(converted(kept, kind, "mixed"), rounded, tmp_path), kept.exported.frames)
    )
    assert count > 45
    assert share >= 0.9


def test_without_them_in_fp32_nothing_right_is_detected(beyond, in_fp32, tmp_path):
    """The reason for all this: what overflows is infinite, and what reads it is no number."""
    found = detect(written(converted(beyond, FP16, "fp16"), True, tmp_path), beyond.exported.frames)
    assert share_matched(in_fp32, found)[0] < 0.2


def written(model, rounded, folder):
    path = folder / "converted.onnx"
    onnx.save(round_like_gpu(model) if rounded else model, path)
    return path


def largest_of(**values):
    """Statistics in which a value reaches that far."""
    return {name: ValueStatistics().including(np.array([0.0, value], np.float32)) for name, value in values.items()}


def test_headroom_and_weights():
    dense = ("features", "scaled", "rpn_features", "pooled", "flat", "fc6", "fc7")
    ordinary = dict.fromkeys(dense, 1.0)
    graph = graph_of(c4_nodes("w7"), {"w6": np.full((1, 1), 7e4, np.float32)}, SHAPES)
    found = find_beyond_fp16(graph, largest_of(**ordinary))
    assert found == {"fc6": "its weight reaches 70000, and FP16 ends at 65504"}
    graph = graph_of(c4_nodes("w7"), shapes=SHAPES)
    edge = LARGEST / HEADROOM
    assert find_beyond_fp16(graph, largest_of(**{**ordinary, "features": edge})) == {}
    over = np.nextafter(np.float32(edge), np.float32(np.inf))
    found = find_beyond_fp16(graph, largest_of(**{**ordinary, "features": -over}))
    assert set(found) == {"features", "scaled"}  # which reads it
    found = find_beyond_fp16(graph, largest_of(**ordinary, mean=over))
    assert found == {"excitation": f"its input reaches {over:g} on the images, and FP16 ends at 65504"}
    assert set(find_beyond_fp16(graph, largest_of(**{**ordinary, "fc7": over}))) == {"fc7"}  # its readers are FP32
