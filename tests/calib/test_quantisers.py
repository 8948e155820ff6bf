"""Where quantisers stand: rules on the exported detectors, and cases on graphs written by hand."""

from __future__ import annotations

from collections import Counter

import onnx
import onnxruntime
import pytest

from calib.groups import node_indices
from calib.quantisers import place_quantisers
from tests.calib.graphs import graph_of, layers_with_weights, node

PASSING = ("Resize", "MaxPool")


def all_layers(source):
    return node_indices(source.groups, source.names)


def placed_in(nodes, layers, flavour="tensorrt"):
    """Quantised value -> {(result of the reading node, position)}, for layers named by their results."""
    graph = graph_of(nodes)
    chosen = [index for index, item in enumerate(nodes) if item.output[0] in layers.split()]
    placed = place_quantisers(graph, chosen, flavour)
    return {
        value: {(nodes[index].output[0], slot) for index, slot in reads} for value, reads in placed.reads.items()
    }, placed


@pytest.mark.parametrize("every", [1, 2, 3], ids=["all layers", "one of two", "one of three"])
def test_tensorrt_quantises_data_of_chosen_layers_and_skips_alone(calibrated, every):
    source = calibrated.source
    graph = source.model.graph
    layers = node_indices(source.groups, source.names[::every])
    placed = place_quantisers(graph, layers, "tensorrt")
    reads = {read: value for value, at in placed.reads.items() for read in at}
    assert {index for index, _ in reads if graph.node[index].op_type in ("Conv", "Gemm")} == set(layers)
    per_node = Counter(index for index, _ in reads)
    for (index, slot), value in reads.items():
        reader = graph.node[index]
        assert reader.input[slot] == value
        assert reader.domain == ""
        assert reader.op_type in ("Conv", "Gemm", "Add", *PASSING)
        assert slot == 0 or reader.op_type == "Add"
        assert per_node[index] == 1, "one branch of a sum only"
    assert placed.measured == list(placed.reads)


def test_tensorrt_places_nothing_between_a_convolution_and_what_is_fused_into_it(calibrated):
    """Neither before a Relu, nor on the branch of a sum that the sum is fused into."""
    source = calibrated.source
    graph = source.model.graph
    placed = place_quantisers(graph, all_layers(source), "tensorrt")
    made = {name: (index, item.op_type) for index, item in enumerate(graph.node) for name in item.output}
    sums = 0
    for index, item in enumerate(graph.node):
        if item.op_type != "Add":
            continue
        quantised = [(index, slot) in placed.reads.get(name, set()) for slot, name in enumerate(item.input)]
        convs = {slot: made[name][0] for slot, name in enumerate(item.input) if made[name][1] == "Conv"}
        main = max(convs, key=convs.__getitem__)
        assert not quantised[main]
        skip = made[item.input[1 - main]]
        assert quantised[1 - main] or skip[1] == "Resize"  # which is quantised in front of it
        sums += 1
    assert sums == (10 if source.names[0] == "backbone/body/0/0" else 19)


def test_tensorrt_quantises_before_the_resizes_of_the_fpn(calibrated):
    source = calibrated.source
    graph = source.model.graph
    placed = place_quantisers(graph, all_layers(source), "tensorrt")
    resizes = [index for index, item in enumerate(graph.node) if item.op_type == "Resize"]
    assert len(resizes) >= 2
    for index in resizes:
        assert (index, 0) in placed.reads[graph.node[index].input[0]]
        assert graph.node[index].output[0] not in placed.reads


def test_description_counts_reads_by_kind(calibrated_demo):
    source = calibrated_demo.source
    placed = place_quantisers(source.model.graph, all_layers(source), "tensorrt")
    readers = Counter(source.model.graph.node[index].op_type for reads in placed.reads.values() for index, _ in reads)
    assert readers == {"Conv": 49, "Gemm": 2, "Add": 8, "Resize": 2}


RESIDUAL = [
    node("Conv", "x w1", "a"),
    node("Relu", "a", "b"),
    node("Conv", "b w2", "c"),
    node("Add", "c x", "sum"),
    node("Relu", "sum", "y"),
]


def test_skip_of_a_residual_block():
    reads, _ = placed_in(RESIDUAL, "a c")
    assert reads == {"x": {("a", 0), ("sum", 1)}, "b": {("c", 0)}}


def test_a_sum_behind_a_layer_that_is_not_chosen_is_left_alone():
    reads, _ = placed_in(RESIDUAL, "a")
    assert reads == {"x": {("a", 0)}}


@pytest.mark.parametrize("chosen", ["first second", "first"])
def test_where_both_branches_are_convolutions_the_later_chosen_one_is_the_main_one(chosen):
    nodes = [node("Conv", "x w1", "first"), node("Conv", "x w2", "second"), node("Add", "second first", "sum")]
    reads, _ = placed_in(nodes, chosen)
    assert reads == {"x": {(name, 0) for name in chosen.split()}} | (
        {"first": {("sum", 1)}} if chosen == "first second" else {"second": {("sum", 0)}}
    )


def test_a_convolution_with_another_reader_is_no_main_branch():
    nodes = [node("Conv", "x w1", "a"), node("Add", "a x", "sum"), node("Relu", "a", "other")]
    assert placed_in(nodes, "a")[0] == {"x": {("a", 0)}}


def test_a_constant_is_no_branch():
    assert placed_in([node("Conv", "x w1", "a"), node("Add", "a w2", "sum")], "a")[0] == {"x": {("a", 0)}}


def test_a_resize_that_somebody_else_reads_too_is_quantised_behind():
    nodes = [
        node("Resize", "top w0 w0 w0", "up"),
        node("Conv", "x w1", "lateral"),
        node("Add", "lateral up", "sum"),
    ]
    reads, _ = placed_in(nodes, "lateral")
    assert reads == {"x": {("lateral", 0)}, "top": {("up", 0)}}
    reads, _ = placed_in([*nodes, node("Relu", "up", "other")], "lateral")
    assert reads == {"x": {("lateral", 0)}, "up": {("sum", 1)}}


def test_concat_and_max_pool_get_none():
    nodes = [
        node("MaxPool", "x", "pooled"),
        node("Conv", "pooled w1", "a"),
        node("Conv", "pooled w2", "b"),
        node("Concat", "a b", "both", axis=1),
        node("Conv", "both w3", "c"),
    ]
    reads, _ = placed_in(nodes, "a b c")
    assert reads == {"pooled": {("a", 0), ("b", 0)}, "both": {("c", 0)}}


def test_cpu_quantises_results_too_and_every_reader_reads_them():
    reads, placed = placed_in([*RESIDUAL, node("MaxPool", "y", "z"), node("Softmax", "z", "end")], "a c", "cpu")
    assert reads == {
        "x": {("a", 0), ("sum", 1)},
        "b": {("c", 0)},  # behind the Relu, which QLinearConv takes in
        "c": {("sum", 0)},
        "y": {("z", 0)},
        "z": {("end", 0)},
    }
    assert placed.range_of("z") == "y"
    assert placed.measured == ["x", "b", "c", "y"]


def test_cpu_leaves_a_sum_in_fp32_where_one_branch_is():
    reads, _ = placed_in([node("HardSwish", "h", "x"), *RESIDUAL[:2], node("Add", "b x", "sum")], "", "cpu")
    assert reads == {}
    nodes = [node("Conv", "h w1", "a"), node("Sigmoid", "h", "s"), node("Add", "a s", "sum"), node("Relu", "sum", "y")]
    assert placed_in(nodes, "a", "cpu")[0] == {"h": {("a", 0)}, "a": {("sum", 0)}}


@pytest.mark.parametrize("name", ["demo", "resnet"])
def test_onnx_runtime_computes_every_chosen_layer_in_int8(name, request, tmp_path):
    """Counted in the graph that ONNX Runtime has made of the file."""
    calibrated = request.getfixturevalue(f"calibrated_{name}")
    ops = optimised_ops(calibrated.converted("int8", "cpu"), tmp_path / "optimised.onnx")
    graph = calibrated.source.model.graph
    chosen = Counter(graph.node[index].op_type for index in all_layers(calibrated.source))
    assert (ops["QLinearConv"], ops["QGemm"]) == (chosen["Conv"], chosen["Gemm"])
    sums = sum(item.op_type == "Add" for item in graph.node)
    assert ops["QLinearAdd"] == sums
    left = len(layers_with_weights(calibrated.source.model)) - sum(chosen.values())
    assert ops["Conv"] + ops["FusedConv"] + ops["Gemm"] + ops["FusedGemm"] == left


def optimised_ops(model, path):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(item.op_type for item in onnx.load(path).graph.node)
