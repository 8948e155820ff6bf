"""Which nodes may leave FP32, on small graphs written by hand: other detectors than those that are exported today."""

from __future__ import annotations

from onnx import helper

from calib.dense_part import find_dense_nodes


def node(op_type, inputs, outputs, domain=""):
    return helper.make_node(op_type, inputs.split(), outputs.split(), domain=domain)


def dense_results(nodes):
    graph = helper.make_graph(nodes, "test", [], [])
    return [graph.node[index].output[0] for index in find_dense_nodes(graph)]


def test_c4_head_with_a_mean_and_pixels_prepared_in_the_graph():
    nodes = [
        node("Mul", "images scale", "normalised"),  # pixels: no convolution before
        node("Conv", "normalised w1", "features"),
        node("Relu", "features", "relu"),
        node("Conv", "relu w2", "objectness"),
        node("Conv", "relu w3", "rpn_deltas"),
        node("Reshape", "rpn_deltas shape", "rpn_deltas_4"),  # between the last layer and its reader
        node("RpnProposals", "im_info objectness rpn_deltas_4", "rois num_rois", "edgercnn"),
        node("RoiMaxPool", "rois relu", "pooled", "edgercnn"),
        node("Conv", "pooled w4", "res5"),
        node("Relu", "res5", "res5_relu"),
        node("ReduceMean", "res5_relu axes", "mean"),
        node("Gemm", "mean w5", "logits"),
        node("Gemm", "mean w6", "deltas"),
        node("BoxDetections", "rois num_rois logits deltas im_info", "n boxes scores classes", "edgercnn"),
    ]
    assert dense_results(nodes) == ["features", "relu", "pooled", "res5", "res5_relu"]


def test_arithmetic_on_coordinates_and_unknown_operators_stay_fp32():
    nodes = [
        node("Mul", "im_info two", "im_info_2"),  # no convolution before: coordinates
        node("Conv", "images w1", "features"),
        node("Softmax", "features", "attention"),
        node("Mul", "features attention", "weighted"),
        node("Relu", "weighted", "foreign", "somebody.else"),
        node("Conv", "weighted w2", "objectness"),
        node("Conv", "weighted w3", "rpn_deltas"),
        node("RpnProposals", "im_info_2 objectness rpn_deltas", "rois num_rois", "edgercnn"),
        node("Add", "rois one", "moved"),  # behind the proposals: coordinates again
        node("PyramidRoiAlign", "moved weighted", "pooled", "edgercnn"),
        node("Gemm", "pooled w4", "fc6"),
        node("Gemm", "fc6 w5", "logits"),
        node("Gemm", "fc6 w6", "deltas"),
        node("BoxDetections", "moved num_rois logits deltas im_info_2", "n boxes scores classes", "edgercnn"),
    ]
    assert dense_results(nodes) == ["features", "weighted", "pooled", "fc6"]
