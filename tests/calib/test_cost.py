"""Costs, against counting every multiplication of a layer that really runs."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from calib.cost import BYTES, DEVICES, ORIN, X86, Cost, Device, group_costs, mix_seconds, sum_costs
from calib.groups import Group, find_groups
from runtime.backends.onnxruntime import read_spec

ROIS = 9  # R of the graph below


def value(name: str, shape) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def detector_graph(batch: int | str) -> GraphProto:
    """A convolution, a depthwise one of stride 2, pooling, and a convolution and two Gemms for each roi."""
    rows = batch * ROIS if isinstance(batch, int) else "rows"
    pool = helper.make_node("PyramidRoiAlign", ["rois", "second"], ["pooled"], domain="edgercnn")
    nodes = [
        helper.make_node("Conv", ["images", "first.w", "first.b"], ["first"], name="a/Conv", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["first", "second.w"], ["second"], name="b/Conv", group=8, strides=[2, 2]),
        helper.make_node("RpnProposals", ["second"], ["rois", "num_rois"], domain="edgercnn"),
        pool,
        helper.make_node("Conv", ["pooled", "third.w"], ["third"], name="c/Conv"),
        helper.make_node("Flatten", ["third"], ["flat"]),
        helper.make_node("Gemm", ["flat", "fourth.w"], ["fourth"], name="d/Gemm", transB=1),
        helper.make_node("Gemm", ["fourth", "fifth.w"], ["fifth"], name="e/Gemm"),
    ]
    shapes = {
        "first": (batch, 8, 10, 12),
        "second": (batch, 8, 4, 5),
        "rois": (batch, ROIS, 4),
        "num_rois": (batch,),
        "pooled": (rows, 8, 3, 3),
        "third": (rows, 6, 2, 2),
        "flat": (rows, 24),
        "fourth": (rows, 7),
    }
    weights = {
        "first.w": (8, 3, 3, 3),
        "first.b": (8,),
        "second.w": (8, 1, 3, 3),
        "third.w": (6, 8, 2, 2),
        "fourth.w": (7, 24),
        "fifth.w": (7, 5),
    }
    constants = [numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in weights.items()]
    stated = [value(name, shape) for name, shape in shapes.items()]
    inputs, outputs = [value("images", (batch, 3, 10, 12))], [value("fifth", (rows, 5))]
    return helper.make_graph(nodes, "detector", inputs, outputs, constants, value_info=stated)


GROUPS = [
    Group(name, weight, (node,), (f"{name}/{op}",))
    for name, weight, node, op in (
        ("a", "first.w", 0, "Conv"),
        ("b", "second.w", 1, "Conv"),
        ("c", "third.w", 4, "Conv"),
        ("d", "fourth.w", 6, "Gemm"),
        ("e", "fifth.w", 7, "Gemm"),
    )
]
# multiply-adds as loops over: rois, outputs (channel, row, column), channels read, kernel; numbers in and out; weight
EXPECTED = {
    "a": Cost(8 * 10 * 12 * 3 * 3 * 3, 3 * 10 * 12 + 8 * 10 * 12, 8 * 3 * 3 * 3),
    "b": Cost(8 * 4 * 5 * 1 * 3 * 3, 8 * 10 * 12 + 8 * 4 * 5, 8 * 3 * 3),
    "c": Cost(ROIS * 6 * 2 * 2 * 8 * 2 * 2, ROIS * (8 * 3 * 3 + 6 * 2 * 2), 6 * 8 * 2 * 2),
    "d": Cost(ROIS * 7 * 24, ROIS * (24 + 7), 7 * 24),
    "e": Cost(ROIS * 5 * 7, ROIS * (7 + 5), 7 * 5),
}


@pytest.mark.parametrize("batch", ["batch", 1, 4])
def test_costs_are_those_of_one_image_whatever_the_batch(batch):
    assert group_costs(detector_graph(batch), GROUPS) == EXPECTED


def counted_by_running(node: NodeProto, weight: np.ndarray, data_shape: tuple[int, ...]) -> int:
    """Multiply-adds of a layer: with ones for data and weight each output number is how many it summed; no padding."""
    bare = NodeProto()
    bare.CopyFrom(node)
    del bare.input[:]
    bare.input.extend(["x", "w"])
    bare.output[0] = "y"
    kept = [item for item in bare.attribute if item.name not in ("pads", "auto_pad")]
    del bare.attribute[:]
    bare.attribute.extend(kept)
    ones = numpy_helper.from_array(np.ones(weight.shape, np.float32), "w")
    graph = helper.make_graph([bare], "layer", [value("x", data_shape)], [value("y", None)], [ones])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"x": np.ones(data_shape, np.float32)})
    return round(float(result.sum(dtype=np.float64)))


def test_the_demos_costs_are_those_of_its_layers(calibrated_demo):
    """Every layer runs on ones of its own size, with the padding in the data."""
    source = calibrated_demo.source
    graph = source.model.graph
    costs = group_costs(graph, source.groups)
    shapes = {item.name: [dim.dim_value for dim in item.type.tensor_type.shape.dim] for item in graph.value_info}
    shapes["images"] = [dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim]
    weights = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    rois = read_spec(calibrated_demo.exported.path).rpn.post_nms_top_n
    assert set(costs) == set(source.names)
    for group in source.groups:
        macs = 0
        for index in group.nodes:
            node, weight = graph.node[index], weights[group.weight]
            if node.op_type == "Gemm":
                macs += counted_by_running(node, weight, (rois, weight.shape[1]))
            else:
                pads = next((list(item.ints) for item in node.attribute if item.name == "pads"), [0, 0, 0, 0])
                height, width = shapes[node.input[0]][2:]
                sides = (height + pads[0] + pads[2], width + pads[1] + pads[3])
                macs += counted_by_running(node, weight, (1, shapes[node.input[0]][1], *sides))
        assert costs[group.name].macs == macs, group.name
        assert costs[group.name].weights == weights[group.weight].size


def test_layers_that_share_a_weight_read_it_once(calibrated_resnet):
    """The RPN's convolution runs on five levels, and its weight counts once."""
    source = calibrated_resnet.source
    shared = [group for group in find_groups(source.model.graph) if len(group.nodes) > 1]
    assert len(shared) == 1
    cost = group_costs(source.model.graph, source.groups)[shared[0].name]
    assert cost.weights == 256 * 256 * 9
    assert cost.macs == 256 * 9 * (cost.activations // 2)  # as many numbers go in as come out
    parts = [Cost(10, 4, 3), Cost(20, 5, 3)]
    assert sum_costs(parts) == Cost(30, 9, 3)


def test_seconds_are_the_longer_of_arithmetic_and_traffic():
    device = Device("d", {"fp32": 1e9, "fp16": 2e9, "int8": 4e9}, 1e6)
    busy = Cost(macs=10**9, activations=10, weights=10)  # 2 operations each
    assert [busy.seconds(kind, device) for kind in BYTES] == pytest.approx([2.0, 1.0, 0.5])
    wide = Cost(macs=1, activations=10**6, weights=10**6)
    assert [wide.seconds(kind, device) for kind in BYTES] == pytest.approx([8.0, 4.0, 2.0])


costs = st.builds(Cost, st.integers(0, 10**10), st.integers(0, 10**8), st.integers(0, 10**8))
kinds = st.sampled_from(list(BYTES))


@given(st.lists(st.tuples(costs, kinds), max_size=6), st.sampled_from([ORIN, X86]))
def test_lowering_a_group_never_takes_longer(rows, device):
    groups = {f"g{index}": cost for index, (cost, _) in enumerate(rows)}
    mix = {f"g{index}": kind for index, (_, kind) in enumerate(rows)}
    total = mix_seconds(groups, mix, device)
    assert total == pytest.approx(sum(cost.seconds(kind, device) for cost, kind in rows))
    assert math.isfinite(total)
    lower = {"fp32": "fp16", "fp16": "int8", "int8": "int8"}
    for name in groups:
        assert mix_seconds(groups, {**mix, name: lower[mix[name]]}, device) <= total


def test_every_flavour_has_a_device():
    assert DEVICES == {"tensorrt": ORIN, "cpu": X86}
