"""Bias correction against loops, and what it is for: smaller mean errors."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from calib.bias import correct_biases, mean_shift
from calib.groups import Group
from calib.int8 import quantised_weight
from tests.calib.graphs import constants_of, node

RNG = np.random.default_rng(5)


@pytest.mark.parametrize(("outputs", "per_group", "groups"), [(4, 3, 1), (6, 1, 6), (6, 2, 3), (12, 1, 6)])
def test_shift_of_a_convolution(outputs, per_group, groups):
    error, means = RNG.normal(size=(outputs, per_group, 3, 2)), RNG.normal(size=per_group * groups)
    expected = [0.0] * outputs
    for out in range(outputs):
        for channel in range(per_group):
            for row in range(3):
                for column in range(2):
                    source = out // (outputs // groups) * per_group + channel
                    expected[out] += error[out, channel, row, column] * means[source]
    layer = node("Conv", "x w b", "y", group=groups)
    np.testing.assert_allclose(mean_shift(error, layer, means), expected, rtol=1e-12)
    if groups == 1:
        np.testing.assert_allclose(mean_shift(error, node("Conv", "x w b", "y"), means), expected, rtol=1e-12)


@pytest.mark.parametrize("transposed", [None, 0, 1])
def test_shift_of_a_matrix_product(transposed):
    error, means = RNG.normal(size=(3, 5) if transposed else (5, 3)), RNG.normal(size=5)
    expected = [sum((error[o, i] if transposed else error[i, o]) * means[i] for i in range(5)) for o in range(3)]
    attributes = {} if transposed is None else {"transB": transposed}
    np.testing.assert_allclose(mean_shift(error, node("Gemm", "x w b", "y", **attributes), means), expected)


def layer_model(weight, bias, x_shape, **attributes):
    """One Conv or Gemm, `x` -> `y`, and its group."""
    kind = "Conv" if weight.ndim == 4 else "Gemm"
    layer = node(kind, "x w b" if bias is not None else "x w", "y", **attributes)
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", x_shape), ("y", None))
    ]
    arrays = {"w": weight} if bias is None else {"w": weight, "b": bias}
    initializers = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph([layer], "layer", ends[:1], ends[1:], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), [
        Group("g", "w", (0,), ("y",))
    ]


def run(model, x):
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(
        None, {"x": x}
    )[0]


def with_weight(model, weight):
    (item,) = [item for item in model.graph.initializer if item.name == "w"]
    item.CopyFrom(numpy_helper.from_array(weight, "w"))
    return model


CASES = {
    "conv": ((8, 4, 3, 3), (2, 4, 9, 9), 0, {}),
    "depthwise": ((4, 1, 3, 3), (2, 4, 9, 9), 0, {"group": 4}),
    "gemm [I, O]": ((4, 8), (50, 4), 1, {}),
    "gemm [O, I]": ((8, 4), (50, 4), 0, {"transB": 1}),
}


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("constant", [False, True], ids=["data", "constant data"])
@pytest.mark.parametrize("case", CASES)
def test_the_mean_of_each_output_comes_back(case, constant, half):
    shape, x_shape, axis, attributes = CASES[case]
    weight, bias = RNG.normal(size=shape).astype(np.float32), RNG.normal(size=shape[axis]).astype(np.float32)
    x = (
        RNG.normal(size=x_shape) * (0 if constant else 0.3)
        + RNG.normal(size=4).reshape(1, 4, *x_shape[2:2], *(1,) * (len(x_shape) - 2)) * 5
    ).astype(np.float32)
    rounded = quantised_weight(weight, axis, half=half)
    over = tuple(k for k in range(len(x_shape)) if k != 1)
    means = {"x": x.mean(axis=over, dtype=np.float64)}
    model, groups = layer_model(weight, bias, x_shape, **attributes)
    expected = run(model, x).mean(axis=over)
    before = np.abs(run(with_weight(model, rounded), x).mean(axis=over) - expected)
    with_weight(model, weight)
    assert correct_biases(model.graph, groups, ["g"], means, half=half) == 1
    after = np.abs(run(with_weight(model, rounded), x).mean(axis=over) - expected)
    assert before.max() > 1e-3
    assert after.max() < (2e-5 if constant else 0.2 * before.max())


def test_layers_that_share_a_weight_take_the_mean_of_what_each_wants():
    weight, bias = RNG.normal(size=(3, 2, 1, 1)).astype(np.float32), np.zeros(3, np.float32)
    model, _ = layer_model(weight, bias, (1, 2, 4, 4))
    graph = model.graph
    graph.node.append(node("Conv", "x2 w b", "y2"))
    means = {"x": np.array([1.0, 2.0]), "x2": np.array([-3.0, 0.5])}
    assert correct_biases(graph, [Group("g", "w", (0, 1), ("y", "y2"))], ["g"], means) == 1
    error = (quantised_weight(weight, 0).astype(np.float64) - weight)[:, :, 0, 0]
    np.testing.assert_allclose(constants_of(graph)["b"], -error @ np.array([-1.0, 1.25]), rtol=1e-5, atol=1e-9)
    np.testing.assert_array_equal(constants_of(graph)["w"], weight)


@pytest.mark.parametrize("empty", [False, True], ids=["no third input", "an empty one"])
def test_layers_without_a_bias_and_those_not_chosen_are_passed_over(empty):
    weight = RNG.normal(size=(3, 2, 1, 1)).astype(np.float32)
    model, groups = layer_model(weight, None, (1, 2, 4, 4))
    if empty:
        model.graph.node[0].input.append("")
    assert correct_biases(model.graph, groups, ["g"], {"x": np.ones(2)}) == 0
    model, groups = layer_model(weight, np.ones(3, np.float32), (1, 2, 4, 4))
    assert correct_biases(model.graph, groups, [], {}) == 0
    assert constants_of(model.graph)["b"].tolist() == [1.0] * 3
