"""Groups of layers: by structure, on the two exported detectors and on graphs written by hand."""

from __future__ import annotations

import re

import pytest
from onnx import helper

from calib.convert import read_source
from calib.groups import find_groups, node_indices, output_channel_axis, spatial_shapes, weighted_layers
from tests.calib.graphs import WEIGHTED, graph_of, node, rename_everything

LAST = re.compile(r"rpn/head/(cls_logits|bbox_pred)/|roi_heads/box_predictor/")
SQUEEZE = re.compile(r"backbone/body/\d+/block/\d/fc[12]/")  # squeeze-and-excitation


def test_every_layer_is_in_one_group_but_for_the_last_ones_and_squeeze_and_excitation(calibrated):
    graph = calibrated.source.model.graph
    grouped = [layer for group in calibrated.source.groups for layer in group.layers]
    expected = [item.name for item in graph.node if item.op_type in WEIGHTED]
    assert weighted_layers(graph) == expected
    assert sorted(grouped) == sorted(name for name in expected if not LAST.match(name) and not SQUEEZE.match(name))
    names = calibrated.source.names
    assert len(set(names)) == len(names)


def test_what_was_left_out_is_there(demo):
    layers = weighted_layers(demo.model.graph)
    assert sum(bool(SQUEEZE.match(name)) for name in layers) == 12
    assert sum(bool(LAST.match(name)) for name in layers) == 10


def test_a_group_knows_its_nodes_and_its_weight(calibrated):
    graph = calibrated.source.model.graph
    for group in calibrated.source.groups:
        assert group.layers == tuple(graph.node[index].name for index in group.nodes)
        assert {graph.node[index].input[1] for index in group.nodes} == {group.weight}
        assert all(layer.startswith(f"{group.name}/") for layer in group.layers)
        assert list(group.nodes) == sorted(group.nodes)
    firsts = [group.nodes[0] for group in calibrated.source.groups]
    assert firsts == sorted(firsts)


def test_the_convolution_of_the_rpn_on_all_levels_is_one_group(calibrated):
    (proposals,) = [item for item in calibrated.source.model.graph.node if item.op_type == "RpnProposals"]
    levels = (len(proposals.input) - 1) // 2
    sizes = {group.name: len(group.nodes) for group in calibrated.source.groups}
    assert sizes["rpn/head/conv/0/0"] == levels
    assert sum(sizes.values()) == len(sizes) + levels - 1


def test_depthwise_convolutions_are_in(calibrated_demo):
    graph = calibrated_demo.source.model.graph
    inside = {index for group in calibrated_demo.source.groups for index in group.nodes}
    depthwise = [
        index
        for index, item in enumerate(graph.node)
        if any(attribute.name == "group" and attribute.i > 1 for attribute in item.attribute)
    ]
    assert len(depthwise) >= 11
    assert inside.issuperset(depthwise)


def test_names_do_not_matter(calibrated_demo, changed_copy):
    renamed = read_source(changed_copy(rename_everything))
    assert [group.nodes for group in renamed.groups] == [group.nodes for group in calibrated_demo.source.groups]


def c4_nodes(second_head_weight="w6"):
    """A C4 detector with squeeze-and-excitation, whose box head is a Gemm with a weight [I, O]."""
    return [
        node("Conv", "images w1 b1", "features"),
        node("GlobalAveragePool", "features", "mean"),
        node("Conv", "mean w2", "excitation"),  # on one cell
        node("Mul", "features excitation", "scaled"),
        node("Conv", "scaled w3", "rpn_features"),
        node("Conv", "rpn_features w4", "objectness"),
        node("Conv", "rpn_features w5", "rpn_deltas"),
        node("RpnProposals", "im_info objectness rpn_deltas", "rois num_rois", "edgercnn"),
        node("PyramidRoiAlign", "rois scaled", "pooled", "edgercnn"),
        node("Flatten", "pooled", "flat"),
        node("Gemm", "flat w6", "fc6", transB=0),
        node("Gemm", f"fc6 {second_head_weight}", "fc7", transB=1),
        node("Gemm", "fc7 w8", "logits"),
        node("Gemm", "fc7 w9", "deltas"),
        node("BoxDetections", "rois num_rois logits deltas im_info", "n boxes scores classes", "edgercnn"),
    ]


SHAPES = {"images": ["B", 3, 8, 8], "features": ["B", 4, 8, 8], "mean": ["B", 4, 1, 1], "scaled": ["B", 4, 8, 8]}


def members(graph):
    return {group.weight: group.layers for group in find_groups(graph)}


def test_c4_head():
    graph = graph_of(c4_nodes("w7"), shapes=SHAPES)
    expected = {"w1": ("features",), "w3": ("rpn_features",), "w6": ("fc6",), "w7": ("fc7",)}
    assert members(graph) == expected
    assert [output_channel_axis(item) for item in graph.node if item.op_type == "Gemm"] == [1, 0, 1, 1]
    assert output_channel_axis(graph.node[0]) == 0


def test_a_weight_that_the_dense_part_shares_with_itself_makes_one_group():
    assert members(graph_of(c4_nodes("w6"), shapes=SHAPES))["w6"] == ("fc6", "fc7")


@pytest.mark.parametrize("shared", ["w8", "w4"], ids=["with the box head's last layer", "with the RPN's"])
def test_a_weight_shared_with_a_last_layer_stays(shared):
    groups = members(graph_of(c4_nodes(shared), shapes=SHAPES))
    assert set(groups) == {"w1", "w3", "w6"}


def test_weights_that_the_graph_computes_are_no_groups():
    nodes = [node("Mul", "w0 w1", "folded"), node("Conv", "images folded", "features"), *c4_nodes("w7")[1:]]
    assert set(members(graph_of(nodes, shapes=SHAPES))) == {"w3", "w6", "w7"}


def test_two_groups_of_one_module_have_two_names():
    nodes = c4_nodes("w7")
    nodes[10].name, nodes[11].name = "head/Gemm", "head/Gemm_1"
    assert [group.name for group in find_groups(graph_of(nodes, shapes=SHAPES))][-2:] == ["head", "head/Gemm_1"]


def test_indices_of_chosen_groups(calibrated_demo):
    groups = calibrated_demo.source.groups
    chosen = [groups[5].name, groups[2].name, "rpn/head/conv/0/0"]
    (rpn,) = [group for group in groups if group.name == chosen[2]]
    assert node_indices(groups, chosen) == sorted([*groups[2].nodes, *groups[5].nodes, *rpn.nodes])
    assert node_indices(groups, []) == []


def test_spatial_shapes_of_values_of_four_dimensions():
    shapes = {"x": ["B", 3, 8, 9], "rois": ["B", 5, 4], "open": [1, 3, "H", "W"]}
    graph = graph_of([helper.make_node("Relu", ["x"], ["y"])], shapes=shapes)
    assert spatial_shapes(graph) == {"x": (8, 9), "open": (0, 0)}
