"""A small net written in INT8, against integers in NumPy."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from calib.groups import Group
from calib.int8 import write_int8
from tests.calib.graphs import constants_of, node, session_of, value_info

# A net of every kind of layer: a convolution with padding and stride, a depthwise one, a sum, a Gemm of each kind.
RNG = np.random.default_rng(3)
WEIGHTS = {
    "w1": RNG.normal(0, 0.3, (6, 3, 3, 3)).astype(np.float32),
    "b1": RNG.normal(0, 0.5, 6).astype(np.float32),
    "w2": RNG.normal(0, 0.5, (6, 1, 3, 3)).astype(np.float32),
    "b2": RNG.normal(0, 0.5, 6).astype(np.float32),
    "w3": RNG.normal(0, 0.2, (6 * 16, 5)).astype(np.float32),
    "b3": RNG.normal(0, 0.5, 5).astype(np.float32),
}
X = RNG.normal(0, 1, (2, 3, 8, 8)).astype(np.float32)


def small_net():
    nodes = [
        node("Conv", "x w1 b1", "a", pads=[1] * 4, strides=[2, 2]),
        node("Relu", "a", "ra"),
        node("Conv", "ra w2 b2", "d", pads=[1] * 4, group=6),
        node("Add", "d ra", "sum"),
        node("Flatten", "sum", "flat", axis=1),
        node("Gemm", "flat w3 b3", "y"),
    ]
    initializers = [numpy_helper.from_array(array, name) for name, array in WEIGHTS.items()]
    graph = helper.make_graph(
        nodes, "small", [value_info("x", shape=[2, 3, 8, 8])], [value_info("y", shape=[2, 5])], initializers
    )
    groups = [
        Group(name, weight, (index,), (nodes[index].name,))
        for name, weight, index in (("a", "w1", 0), ("d", "w2", 2), ("y", "w3", 5))
    ]
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), groups


RANGES = {
    "x": (-3.5, 4.0),
    "a": (-7.0, 7.0),
    "ra": (0.0, 7.0),
    "d": (-9.0, 12.0),
    "sum": (-9.0, 15.0),
    "flat": (-9.0, 15.0),
}


def convolved(stored, weight, stride, groups):
    """Integer sums [B, O, H, W] of a 3x3 convolution with zero padding: each product on its own place."""
    batch, _, height, width = stored.shape
    padded = np.pad(stored.astype(np.int64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    total = np.zeros((batch, len(weight), height // stride, width // stride), np.int64)
    per_group, outputs = weight.shape[1], len(weight) // groups
    for out in range(len(weight)):
        for channel in range(per_group):
            source = out // outputs * per_group + channel
            for row in range(3):
                for column in range(3):
                    window = padded[:, source, row : row + height : stride, column : column + width : stride]
                    total[:, out] += window * int(weight[out, channel, row, column])
    return total


def in_integers():
    """The small net as INT8 hardware computes it: integer products and sums, one multiplication by the scales."""

    def stored(name, values):
        scale = max(map(abs, RANGES[name])) / 127
        return np.clip(np.rint(values / np.float32(scale)), -128, 127), scale

    def weight(name, axis):
        array = np.moveaxis(WEIGHTS[name], axis, 0)
        scale = np.abs(array).reshape(len(array), -1).max(axis=1) / 127
        shape = (-1,) + (1,) * (array.ndim - 1)
        return np.moveaxis(np.rint(array / scale.astype(np.float32).reshape(shape)), 0, axis), scale

    def layer(total, data_scale, weight_scales, bias):
        shape = (1, -1) + (1,) * (total.ndim - 2)
        return total * (data_scale * weight_scales).reshape(shape) + bias.reshape(shape)

    (x, x_scale), (w1, w1_scale) = stored("x", X), weight("w1", 0)
    ra = np.maximum(layer(convolved(x, w1, 2, 1), x_scale, w1_scale, WEIGHTS["b1"]), 0)
    (q, q_scale), (w2, w2_scale) = stored("ra", ra), weight("w2", 0)
    d = layer(convolved(q, w2, 1, 6), q_scale, w2_scale, WEIGHTS["b2"])
    flat = (d + q * q_scale).reshape(2, -1)
    (f, f_scale), (w3, w3_scale) = stored("flat", flat), weight("w3", 1)
    return layer(f.astype(np.int64) @ w3.astype(np.int64), f_scale, w3_scale, WEIGHTS["b3"])


def quantised_net(flavour, **options):
    model, groups = small_net()
    count = write_int8(model.graph, groups, ["a", "d", "y"], RANGES, flavour=flavour, **options)
    onnx.checker.check_model(model, full_check=True)
    return model, count


def test_a_small_net_is_what_integers_give():
    """A tie may fall to either side in float32, which moves a result by a step of one activation."""
    model, count = quantised_net("tensorrt")
    assert count == 3  # x, ra for the convolution and the skip, flat
    found = session_of(model).run(None, {"x": X})[0]
    np.testing.assert_allclose(found, in_integers(), rtol=1e-4, atol=1e-4)
    in_fp32 = session_of(small_net()[0]).run(None, {"x": X})[0]
    assert 0.005 < np.abs(found - in_fp32).max() < 0.5


def test_the_constants_of_the_small_net():
    model, _ = quantised_net("tensorrt")
    constants = constants_of(model.graph)
    assert {name for name in constants if name[0] == "b"} == {"b1", "b2", "b3"}  # as they were
    for name, axis in (("w1", 0), ("w2", 0), ("w3", 1)):
        assert name not in constants, "FP32 weights are gone"
        stored = constants[f"{name}/quantized"]
        assert stored.dtype == np.int8
        assert stored.shape == WEIGHTS[name].shape
        assert np.abs(stored).max() == 127
        assert constants[f"{name}/zero_point"].tolist() == [0] * WEIGHTS[name].shape[axis]
        axes = {item.name: item.attribute[0].i for item in model.graph.node if item.input[0] == f"{name}/quantized"}
        assert axes == {f"{name}/dequantized": axis}
    by_result = {item.output[0]: list(item.input) for item in model.graph.node}
    assert by_result["a"] == ["x/dequantized", "w1/dequantized", "b1"]
    assert by_result["sum"] == ["d", "ra/dequantized"]


def test_biases_of_the_cpu_flavour_are_int32_in_steps_of_both_scales():
    model, _ = quantised_net("cpu")
    constants = constants_of(model.graph)
    by_result = {item.output[0]: list(item.input) for item in model.graph.node}
    for layer, data, weight, bias in (("a", "x", "w1", "b1"), ("d", "ra", "w2", "b2"), ("y", "flat", "w3", "b3")):
        name = f"{layer}:bias"
        assert by_result[layer][2] == f"{name}/dequantized"
        step = constants[f"{data}/scale"] * constants[f"{weight}/scale"]
        np.testing.assert_array_equal(constants[f"{name}/scale"], step)
        stored = constants[f"{name}/quantized"]
        assert stored.dtype == np.int32
        assert np.abs(stored * step.astype(np.float64) - WEIGHTS[bias]).max() <= 0.51 * step.max()
    found = session_of(model).run(None, {"x": X})[0]
    assert np.abs(found - session_of(small_net()[0]).run(None, {"x": X})[0]).max() < 0.3


def test_a_bias_beyond_int32_stays_fp32():
    model, groups = small_net()
    (bias,) = [item for item in model.graph.initializer if item.name == "b1"]
    bias.CopyFrom(numpy_helper.from_array(np.array([1e9, *WEIGHTS["b1"][1:]], np.float32), "b1"))
    write_int8(model.graph, groups, ["a", "d", "y"], RANGES, flavour="cpu")
    constants = constants_of(model.graph)
    assert "a:bias/quantized" not in constants
    assert constants["b1"][0] == np.float32(1e9)
    assert "d:bias/quantized" in constants


def test_scales_for_fp16_are_numbers_of_fp16():
    constants = constants_of(quantised_net("tensorrt", half=True)[0].graph)
    scales = [array for name, array in constants.items() if name.endswith("/scale")]
    assert len(scales) == 6
    for array in scales:
        np.testing.assert_array_equal(array, array.astype(np.float16))


def test_layers_that_are_not_chosen_stay_as_they_are():
    model, groups = small_net()
    before = {item.output[0]: item for item in small_net()[0].graph.node}
    assert write_int8(model.graph, groups, ["y"], RANGES, flavour="tensorrt") == 1
    after = {item.output[0]: item for item in model.graph.node}
    assert [name for name in before if after[name] != before[name]] == ["y"]
    assert write_int8(small_net()[0].graph, groups, [], {}, flavour="tensorrt") == 0


def test_a_missing_range_is_a_bug():
    model, groups = small_net()
    with pytest.raises(AssertionError, match="no range of"):
        write_int8(model.graph, groups, ["a"], {}, flavour="tensorrt")
