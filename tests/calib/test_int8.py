"""INT8 arithmetic against ONNX Runtime's own and against slow references."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from calib.int8 import (
    LEAST_SCALE,
    Scale,
    activation_scale,
    quantised_weight,
    symmetric_scale,
    unsigned_scale,
    weight_scale,
)
from tests.calib.graphs import node, session_of, value_info

FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)
SCALES = st.floats(2.0**-30, 2.0**20, width=32)
MODEL = {"opset_imports": [helper.make_opsetid("", 19)], "ir_version": 10}
RUN = {"deadline": None, "max_examples": 60}


@pytest.fixture(scope="module", params=[TensorProto.INT8, TensorProto.UINT8], ids=["int8", "uint8"])
def quantiser(request):
    """A session of QuantizeLinear and DequantizeLinear, and its type in NumPy."""
    nodes = [node("QuantizeLinear", "x scale zero", "stored"), node("DequantizeLinear", "stored scale zero", "back")]
    inputs = [value_info("x", shape=["N"]), value_info("scale", shape=[]), value_info("zero", request.param, [])]
    outputs = [value_info("stored", request.param, ["N"]), value_info("back", shape=["N"])]
    session = session_of(helper.make_model(helper.make_graph(nodes, "quantiser", inputs, outputs), **MODEL))
    return session, helper.tensor_dtype_to_np_dtype(request.param)


@settings(**RUN)
@given(data=st.data(), scale=SCALES, zero=st.integers(0, 127), steps=st.lists(st.integers(-600, 600), max_size=6))
def test_values_are_stored_as_onnx_runtime_stores_them(quantiser, data, scale, zero, steps):
    session, dtype = quantiser
    drawn = data.draw(st.lists(FLOATS, min_size=1, max_size=20))
    halves = [np.float32(step / 2) * np.float32(scale) for step in steps]  # ties
    x = np.array([*drawn, *halves], np.float32)
    own = Scale(np.array(scale, np.float32), np.array(zero, dtype))
    stored, back = session.run(None, {"x": x, "scale": own.scale, "zero": own.zero_point})
    np.testing.assert_array_equal(own.store(x), stored)
    np.testing.assert_array_equal((own.store(x).astype(np.int32) - zero).astype(np.float32) * own.scale, back)


@settings(**RUN)
@given(st.floats(0, 2.0**20, width=32), st.booleans())
def test_a_symmetric_scale_reaches_the_largest_value_within_half_a_step(largest, half):
    scale = symmetric_scale(largest, half=half)
    assert (scale.zero_point, scale.zero_point.dtype, scale.scale.dtype) == (0, np.int8, np.float32)
    assert scale.scale >= LEAST_SCALE
    if half:
        assert scale.scale == np.float16(scale.scale)
    limits = np.array([-largest, largest], np.float32)
    back = scale.store(limits).astype(np.float32) * scale.scale
    coarse = 2.0**-25 * 127 if half else 0.0  # half a subnormal step, 127 times
    assert np.abs(back - limits).max() <= 0.5 * scale.scale + largest * 2.0**-11 + coarse
    if largest > 1e-3:
        assert list(scale.store(limits)) == [-127, 127]


def test_scales_beyond_fp16_are_left_to_fp32():
    with np.errstate(all="raise"):
        scale = symmetric_scale(np.array([1e3, 127 * 7e4, 1e8]), half=True)
    assert np.isfinite(scale.scale).all()
    assert scale.scale[0] == np.float16(1e3 / 127)
    np.testing.assert_array_equal(scale.scale[1:], np.array([7e4, 1e8 / 127], np.float32))


@settings(**RUN)
@given(st.floats(-(2.0**20), 2.0**20, width=32), st.floats(-(2.0**20), 2.0**20, width=32))
def test_an_unsigned_scale_has_zero_and_both_ends(one, other):
    low, high = min(one, other), max(one, other)
    scale = unsigned_scale(low, high)
    assert scale.zero_point.dtype == np.uint8
    assert scale.scale > 0

    def read_back(number):
        stored = scale.store(np.array([number], np.float32)).astype(np.float64) - float(scale.zero_point)
        return float(stored[0] * scale.scale)

    assert read_back(0.0) == 0.0
    for end in (low, high):
        assert abs(read_back(end) - end) <= scale.scale * 0.501


@pytest.mark.parametrize("flavour", ["tensorrt", "cpu"])
def test_a_value_that_is_always_zero_stays_zero(flavour):
    scale = activation_scale((0.0, 0.0), flavour)
    assert scale.scale > 0
    assert scale.store(np.zeros(3, np.float32)).tolist() == [int(scale.zero_point)] * 3


def test_the_flavours_of_activations():
    assert activation_scale((-1.0, 3.0), "tensorrt").scale == np.float32(3.0 / 127)
    assert activation_scale((-4.0, 3.0), "tensorrt").scale == np.float32(4.0 / 127)
    cpu = activation_scale((-1.0, 3.0), "cpu")
    assert (cpu.scale, cpu.zero_point) == (np.float32(4.0 / 255), 64)
    assert activation_scale((0.0, 3.0), "cpu").zero_point == 0


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(("shape", "axis"), [((3, 2, 2, 3), 0), ((4, 5), 0), ((4, 5), 1)])
def test_weights_are_rounded_channel_by_channel(shape, axis, half):
    """Element by element, with Python's own round, which takes ties to even."""
    weight = np.random.default_rng(0).normal(0, 0.1, shape).astype(np.float32)
    np.moveaxis(weight, axis, 0)[1] = 0.0
    found = quantised_weight(weight, axis, half=half)
    scales = weight_scale(weight, axis, half=half).scale
    assert scales.shape == (shape[axis],)
    for place in np.ndindex(*shape):
        channel = np.moveaxis(weight, axis, 0)[place[axis]]
        largest = float(np.abs(channel).max()) or 1.0
        step = np.float16(largest / 127) if half else np.float32(largest / 127)
        assert scales[place[axis]] == np.float32(step)
        expected = np.float32(round(float(weight[place] / np.float32(step)))) * np.float32(step)
        assert found[place] == expected
