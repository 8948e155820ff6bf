"""The converted graph: which nodes are FP16, where casts stand, and what stays as it was."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from calib.artifact import element_types, spec_of_model
from calib.fp16 import Precisions, convert_initializers, convert_to_fp16, count_precisions
from runtime.errors import ArtifactError, UserError

FP16, FP32 = TensorProto.FLOAT16, TensorProto.FLOAT
WEIGHTED = ("Conv", "Gemm")


def node_of(model, op_type):
    (found,) = [node for node in model.graph.node if node.op_type == op_type]
    return found


def last_layers(model):
    """Names of the values that RpnProposals and BoxDetections decode, in the file as exported."""
    return {*node_of(model, "RpnProposals").input[1:], *node_of(model, "BoxDetections").input[2:4]}


def types_of(names, types):
    return {types[name] for name in names}


def test_layers_with_weights_are_fp16_but_for_the_last_ones(converted):
    types = element_types(converted.half.graph)
    last = last_layers(converted.model)
    fp32_layers = {node.output[0] for node in converted.half.graph.node if types[node.input[0]] == FP32} & {
        node.output[0] for node in converted.half.graph.node if node.op_type in WEIGHTED
    }
    assert fp32_layers == last
    for node in converted.half.graph.node:
        if node.op_type in WEIGHTED:  # data, weight, bias and result have one type
            expected = FP32 if node.output[0] in last else FP16
            assert types_of([*node.input, *node.output], types) == {expected}, node.name


def test_custom_nodes_take_fp16_features_and_nothing_else_in_fp16(converted):
    types = element_types(converted.half.graph)
    pooling = node_of(converted.half, "PyramidRoiAlign")
    assert types[pooling.input[0]] == FP32  # rois
    assert types_of([*pooling.input[1:], *pooling.output], types) == {FP16}
    for op_type in ("RpnProposals", "BoxDetections"):
        node = node_of(converted.half, op_type)
        assert FP16 not in types_of([*node.input, *node.output], types), op_type


def test_casts_stand_at_the_borders_only(converted):
    """One at the input, one per level in front of the RPN's last layers, one in front of the box head's last layers,
    and two around each mean over a whole image."""
    types = element_types(converted.half.graph)
    casts = [node for node in converted.half.graph.node if node.op_type == "Cast"]
    levels = (len(node_of(converted.half, "RpnProposals").input) - 1) // 2
    means = sum(node.op_type == "ReduceMean" for node in converted.half.graph.node)
    assert len(casts) == 2 + levels + 2 * means
    for cast in casts:
        assert {types[cast.input[0]], types[cast.output[0]]} == {FP16, FP32}
    assert [cast.input[0] for cast in casts].count("images") == 1


def test_means_over_images_and_the_scales_of_resizes_stay_fp32(demo):
    types = element_types(demo.half.graph)
    by_type = {
        op_type: [node for node in demo.half.graph.node if node.op_type == op_type]
        for op_type in ("ReduceMean", "Resize")
    }
    assert len(by_type["ReduceMean"]) == 6
    assert len(by_type["Resize"]) == 2
    for node in by_type["ReduceMean"]:
        assert types_of([node.input[0], node.output[0]], types) == {FP32}
    for node in by_type["Resize"]:
        assert types_of([node.input[0], node.output[0]], types) == {FP16}
        assert types[node.input[2]] == FP32


def test_counts_and_size(demo, resnet):
    assert count_precisions(demo.model).fp16 == count_precisions(demo.model).casts == 0
    expected = Precisions(fp16=127, fp32={"ReduceMean": 6, "Conv": 8, "Gemm": 2}, casts=18)
    assert count_precisions(demo.half) == expected
    assert count_precisions(resnet.half).fp32 == {"Conv": 10, "Gemm": 2}
    for item in (demo, resnet):
        assert item.half.ByteSize() < 0.53 * item.model.ByteSize()


def test_the_file_is_valid_and_its_interface_and_bodies_are_the_same(converted):
    onnx.checker.check_model(converted.half, full_check=True)
    onnx.shape_inference.infer_shapes(converted.half, check_type=True, strict_mode=True, data_prop=True)
    for field in ("input", "output"):
        assert list(getattr(converted.half.graph, field)) == list(getattr(converted.model.graph, field))
    assert list(converted.half.functions) == list(converted.model.functions)
    casts = {node.output[0] for node in converted.half.graph.node if node.op_type == "Cast"}
    stated = {value.name for value in converted.half.graph.value_info}
    assert stated == casts | {value.name for value in converted.model.graph.value_info}


def test_weights_are_the_nearest_fp16_numbers_under_their_old_names(converted):
    before = {item.name: numpy_helper.to_array(item) for item in converted.model.graph.initializer}
    after = {item.name: numpy_helper.to_array(item) for item in converted.half.graph.initializer}
    assert after.keys() == before.keys()
    for name, value in after.items():
        np.testing.assert_array_equal(value, before[name].astype(value.dtype))
    assert sum(value.dtype == np.float16 for value in after.values()) > 0.8 * len(after)


def test_the_spec_says_fp16_and_names_its_parent(converted):
    parent, spec = spec_of_model(converted.model), spec_of_model(converted.half)
    assert (spec.precision, spec.parent_digest) == ("fp16", parent.digest())
    assert spec.replace(precision="fp32", parent_digest=parent.parent_digest) == parent
    keys = [[item.key for item in model.metadata_props] for model in (converted.half, converted.model)]
    assert keys[0] == keys[1]


def test_the_given_model_is_left_as_it_is_and_the_result_is_always_the_same(demo):
    before = demo.model.SerializeToString(deterministic=True)
    again = convert_to_fp16(demo.model)
    assert demo.model.SerializeToString(deterministic=True) == before
    assert again.SerializeToString(deterministic=True) == demo.half.SerializeToString(deterministic=True)


def test_names_do_not_matter(demo, changed_copy):
    """Every node, value and weight called n0, n1, ...: the same conversion."""

    def rename(model):
        kept = {value.name for value in [*model.graph.input, *model.graph.output]} | {""}
        names = [name for node in model.graph.node for name in [*node.input, *node.output] if name not in kept]
        new = {name: f"n{index}" for index, name in enumerate(dict.fromkeys(names))}
        for node in model.graph.node:
            node.name = ""
            node.input[:] = [new.get(name, name) for name in node.input]
            node.output[:] = [new.get(name, name) for name in node.output]
        for item in [*model.graph.initializer, *model.graph.value_info]:
            item.name = new.get(item.name, item.name)

    renamed = convert_to_fp16(changed_copy(rename))
    assert count_precisions(renamed) == count_precisions(demo.half)
    assert Counter(node.op_type for node in renamed.graph.node) == Counter(
        node.op_type for node in demo.half.graph.node
    )


def test_a_constant_that_fp32_nodes_read_too_is_kept_for_them():
    nodes = [helper.make_node("Add", ["x", "c"], ["y"]), helper.make_node("Add", ["y", "c"], ["z"])]
    constant = numpy_helper.from_array(np.array([0.1], np.float32), "c")
    graph = helper.make_graph(nodes, "two", [], [], [constant])
    types = {"x": FP16, "y": FP16, "z": FP32, "c": FP32}
    assert convert_initializers(graph, [0], types) == 1
    assert [list(node.input) for node in graph.node] == [["x", "c/to_fp16"], ["y", "c"]]
    assert {item.name: item.data_type for item in graph.initializer} == {"c": FP32, "c/to_fp16": FP16}
    assert types["c/to_fp16"] == FP16


def set_weight(value):
    def change(model):
        item = model.graph.initializer[0]
        array = numpy_helper.to_array(item).copy()
        array.flat[0] = value
        item.CopyFrom(numpy_helper.from_array(array, item.name))

    return change


@pytest.mark.parametrize("value", [65505.0, -1e6, np.inf, np.nan])
def test_a_weight_that_fp16_cannot_hold_is_refused_by_name(changed_copy, value):
    model = changed_copy(set_weight(value))
    with pytest.raises(UserError, match=rf"{model.graph.initializer[0].name!r} reaches .*, and FP16 ends at 65504"):
        convert_to_fp16(model)


def test_the_largest_and_the_least_numbers_are_taken(changed_copy):
    for value, expected in ((65504.0, 65504.0), (1e-9, 0.0)):
        item = convert_to_fp16(changed_copy(set_weight(value))).graph.initializer[0]
        assert numpy_helper.to_array(item).flat[0] == expected


def edit_spec(key, value):
    def change(model):
        for item in model.metadata_props:
            if item.key == "edgercnn.spec":
                item.value = json.dumps({**json.loads(item.value), key: value})

    return change


def drop_node(op_type):
    return lambda model: model.graph.node.remove(node_of(model, op_type))


def plant_fp16(model):
    item = model.graph.initializer[0]
    item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item).astype(np.float16), "half"))


REFUSED = {
    "not EdgeRCNN": (lambda model: model.ClearField("metadata_props"), "carries no edgercnn.spec"),
    "edited spec": (edit_spec("class_names", ["a"] * 6), "does not match its digest"),
    "broken spec": (edit_spec("precision", "fp61"), "spec.precision is 'fp61'"),
    "no proposals": (drop_node("RpnProposals"), "is not valid ONNX|no edgercnn.RpnProposals"),
    "no detections": (drop_node("BoxDetections"), "is not valid ONNX|no edgercnn.BoxDetections"),
    "an FP16 weight": (plant_fp16, "'half' is FP16, so it was edited"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_fp32_detector_is_refused(changed_copy, case):
    change, message = REFUSED[case]
    with pytest.raises(ArtifactError, match=message):
        convert_to_fp16(changed_copy(change))


def test_an_fp16_file_is_not_converted_again(demo):
    with pytest.raises(ArtifactError, match="has precision fp16 already"):
        convert_to_fp16(demo.half)
