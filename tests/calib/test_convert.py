"""Files in a mix of precisions: what the graph says, what the spec says of it, and what they detect."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto

from calib.artifact import element_types, spec_of_model
from calib.convert import FP16, FP32, INT8, convert, groups_in, layers_of, read_source
from calib.dense_part import find_dense_nodes
from calib.fp16 import QUANTISERS, convert_to_fp16, with_types
from calib.rounding import round_like_gpu
from runtime.detector import open_detector
from runtime.errors import ArtifactError
from runtime.matching import match_detections
from tests.calib.graphs import constants_of, layers_with_weights, makers_of
from tests.calib.tensorrt_rules import check_tensorrt_rules

KINDS = [("int8", "tensorrt"), ("int8", "cpu"), ("mixed", "tensorrt"), ("fp16", "tensorrt")]
every_kind = pytest.mark.parametrize(("precision", "flavour"), KINDS)


def computed_in(model):
    """Layer -> int8, fp16 or fp32: read off the types of the graph."""
    types, makers = element_types(with_types(model).graph), makers_of(model.graph)
    found = {}
    for layer in layers_with_weights(model):
        quantised = [name in makers and makers[name].op_type == "DequantizeLinear" for name in layer.input[:2]]
        own = {types[name] for name in [*layer.input, *layer.output]}
        assert len(own) == 1, f"{layer.name}: several types"
        found[layer.name] = INT8 if all(quantised) else {TensorProto.FLOAT16: FP16, TensorProto.FLOAT: FP32}[own.pop()]
    return found


@every_kind
def test_the_plan_names_every_layer_once_and_says_what_it_computes_in(calibrated, precision, flavour):
    model = calibrated.converted(precision, flavour)
    spec = spec_of_model(model)
    plan = spec.precision_plan
    told = [(name, kind) for kind in (INT8, FP16, FP32) for name in getattr(plan, kind)]
    assert len(told) == len(dict(told)) == len(layers_with_weights(calibrated.source.model))
    assert dict(told) == computed_in(model)
    assert (spec.precision, plan.flavour, plan.method, plan.images) == (precision, flavour, "minmax", 3)
    assignment = calibrated.assignment(precision)
    for kind in (INT8, FP16, FP32):
        own = layers_of(calibrated.source.groups, groups_in(assignment, kind))
        assert set(own) <= set(getattr(plan, kind))
        assert own or (precision, kind) not in [("mixed", INT8), ("mixed", FP16), ("mixed", FP32), ("int8", INT8)]
    last = [
        layer for layer in dict(told) if "box_predictor" in layer or "cls_logits" in layer or "rpn/head/bbox" in layer
    ]
    assert set(last) <= set(plan.fp32)


@every_kind
def test_the_file_is_valid_and_the_rest_of_it_is_as_it_was(calibrated, precision, flavour):
    source, model = calibrated.source.model, calibrated.converted(precision, flavour)
    onnx.checker.check_model(model, full_check=True)
    for field in ("input", "output"):
        assert list(getattr(model.graph, field)) == list(getattr(source.graph, field))
    copy = ModelProto()
    copy.CopyFrom(model)
    for part in (copy, *copy.functions):
        for entry in part.opset_import:
            if entry.domain == "":
                assert entry.version == (19 if precision == "mixed" else 18)
                entry.version = 18
    assert list(copy.functions) == list(source.functions)
    assert list(copy.opset_import) == list(source.opset_import)
    names = {name for node in source.graph.node for name in node.output}
    assert names <= {name for node in model.graph.node for name in node.output}
    kept = [node.name for node in model.graph.node if node.name in {item.name for item in source.graph.node}]
    assert kept == [node.name for node in source.graph.node]
    parent, spec = spec_of_model(source), spec_of_model(model)
    assert spec.parent_digest == parent.digest()
    assert spec.replace(precision="fp32", parent_digest=parent.parent_digest, precision_plan=None) == parent


@pytest.mark.parametrize("precision", ["int8", "mixed"])
def test_tensorrt_takes_it(calibrated, precision):
    model = calibrated.converted(precision)
    plan = spec_of_model(model).precision_plan
    weights = {layer.input[1] for layer in layers_with_weights(model) if layer.name in plan.int8}
    activations = sum(node.op_type == "QuantizeLinear" for node in model.graph.node)
    assert check_tensorrt_rules(model) == len(weights) + activations
    assert activations > 0.6 * len(plan.int8)
    constants = constants_of(model.graph)
    types = {constants[node.input[1]].dtype.name for node in model.graph.node if node.op_type in QUANTISERS}
    assert types == ({"float16", "float32"} if precision == "mixed" else {"float32"})


def test_the_rules_are_broken_by_the_cpu_flavour(calibrated_demo):
    with pytest.raises(AssertionError):
        check_tensorrt_rules(calibrated_demo.converted("int8", "cpu"))


def test_the_source_is_left_as_it_is_and_the_result_is_always_the_same(calibrated_demo):
    source = calibrated_demo.source
    before = source.model.SerializeToString(deterministic=True)
    for precision, flavour in KINDS:
        assignment = calibrated_demo.assignment(precision)
        again = convert(source, assignment, precision, calibrated_demo.calibration, flavour=flavour)
        expected = calibrated_demo.converted(precision, flavour).SerializeToString(deterministic=True)
        assert again.SerializeToString(deterministic=True) == expected
    assert source.model.SerializeToString(deterministic=True) == before


def test_biases_of_int8_layers_alone_are_corrected(calibrated_demo):
    """Every second group is INT8 here."""
    source, calibration = calibrated_demo.source, calibrated_demo.calibration
    assignment = {name: (INT8, FP32)[index % 2] for index, name in enumerate(source.names)}
    corrected = convert(source, assignment, "int8", calibration)
    uncorrected = convert(source, assignment, "int8", dataclasses.replace(calibration, channel_means=None))
    before, after, without = (constants_of(model.graph) for model in (source.model, corrected, uncorrected))
    biases = {node.name: node.input[2] for node in layers_with_weights(source.model)}
    moved = {layer for layer, bias in biases.items() if not np.array_equal(before[bias], after[bias])}
    assert moved == set(spec_of_model(corrected).precision_plan.int8)
    assert all(np.array_equal(before[bias], without[bias]) for bias in biases.values())


def test_nodes_beyond_fp16_stay_fp32(calibrated_demo):
    """A layer in no group (of squeeze-and-excitation), one of FP16, one of INT8, and a sum."""
    beyond = (
        "backbone/body/4/block/2/fc1/Conv",
        "backbone/body/1/block/0/0/Conv",
        "backbone/body/2/block/1/0/Conv",
        "backbone/body/8/Add",
    )
    source = dataclasses.replace(calibrated_demo.source, beyond_fp16=beyond)
    model = convert(source, calibrated_demo.assignment("mixed"), "mixed", calibrated_demo.calibration)
    types, plan = element_types(with_types(model).graph), spec_of_model(model).precision_plan
    made = {node.name: types[node.output[0]] for node in model.graph.node}
    assert {made[name] for name in beyond} == {TensorProto.FLOAT}
    assert {beyond[0], beyond[1]} <= set(plan.fp32)
    assert beyond[2] in plan.int8
    assert computed_in(model) == {name: kind for kind in (INT8, FP16, FP32) for name in getattr(plan, kind)}
    check_tensorrt_rules(model)


def test_layers_of_two_types_that_share_a_quantised_value_each_have_it_in_their_own(calibrated_demo):
    """The RPN's convolution with one level beyond FP16: its weight, too, is dequantised to both types."""
    layers = [f"rpn/head/conv/0/0/Conv{suffix}" for suffix in ("", "_1", "_2", "_3")]
    source = dataclasses.replace(calibrated_demo.source, beyond_fp16=(layers[1],))
    model = convert(source, dict.fromkeys(source.names, INT8), "mixed", calibrated_demo.calibration)
    types = element_types(with_types(model).graph)
    found = {node.name: (types[node.input[1]], types[node.output[0]]) for node in layers_with_weights(model)}
    half, single = TensorProto.FLOAT16, TensorProto.FLOAT
    assert [found[layer] for layer in layers] == [(kind, kind) for kind in (half, single, half, half)]
    assert set(layers) <= {layer for layer, kind in computed_in(model).items() if kind == INT8}
    check_tensorrt_rules(model)


def test_what_reads_an_fp32_layer_is_fp32_too(calibrated):
    """The activation or the sum, lest TensorRT, which meets casts on both sides of a layer, computes it in FP16."""
    source = calibrated.source
    model = calibrated.converted("mixed")
    types = element_types(with_types(model).graph)
    kept = layers_of(source.groups, groups_in(calibrated.assignment("mixed"), FP32))
    made = {node.output[0] for node in source.model.graph.node if node.name in kept}
    readers = [node for node in source.model.graph.node if not made.isdisjoint(node.input)]
    assert len(readers) >= len(kept) >= 5
    assert {types[node.output[0]] for node in readers if node.op_type in ("Relu", "HardSwish", "Add")} == {
        TensorProto.FLOAT
    }


def test_mixed_without_int8_needs_no_newer_opset(calibrated_demo):
    assignment = dict.fromkeys(calibrated_demo.source.names, FP16)
    model = convert(calibrated_demo.source, assignment, "mixed", calibrated_demo.calibration)
    assert next(entry.version for entry in model.opset_import if entry.domain == "") == 18
    assert set(computed_in(model).values()) == {FP16, FP32}


def test_mistakes_of_callers(calibrated_demo):
    source, calibration = calibrated_demo.source, calibrated_demo.calibration
    with pytest.raises(AssertionError, match="every group has one precision"):
        convert(source, {source.names[0]: INT8}, "int8", calibration)
    with pytest.raises(AssertionError, match="mixed is not for cpu"):
        convert(source, calibrated_demo.assignment("mixed"), "mixed", calibration, flavour="cpu")


@every_kind
def test_a_converted_file_is_refused_as_a_source(calibrated_demo, precision, flavour):
    with pytest.raises(ArtifactError, match=f"has precision {precision} already"):
        read_source(calibrated_demo.converted(precision, flavour))


def test_a_file_that_another_tool_quantised_is_refused(calibrated_demo):
    model = ModelProto()
    model.CopyFrom(calibrated_demo.converted("int8"))
    del model.metadata_props[:]
    model.metadata_props.extend(calibrated_demo.source.model.metadata_props)
    with pytest.raises(ArtifactError, match=r"quantises, so another tool has quantised it"):
        read_source(model)


def detect(path, frames):
    with open_detector(path, providers=["cpu"], threads=1) as detector:
        return [detector([frame])[0] for frame in frames]


@pytest.fixture(scope="module")
def in_fp32(demo):
    return detect(demo.path, demo.frames)


def share_matched(reference, found):
    """Of the detections of both, and how many there are in the reference."""
    pairs = sum(len(match_detections(*both).pairs) for both in zip(reference, found, strict=True))
    counts = [sum(map(len, detections)) for detections in (reference, found)]
    return pairs / max(counts), counts[0]


@pytest.mark.parametrize(
    ("precision", "flavour", "rounded"),
    [*((*kind, False) for kind in KINDS), ("mixed", "tensorrt", True)],
    ids=["int8", "cpu", "mixed", "fp16", "mixed as on a GPU"],
)
def test_it_detects_what_fp32_detects(calibrated_demo, in_fp32, precision, flavour, rounded, tmp_path):
    model = calibrated_demo.converted(precision, flavour)
    path = tmp_path / "converted.onnx"
    onnx.save(round_like_gpu(model) if rounded else model, path)
    share, count = share_matched(in_fp32, detect(path, calibrated_demo.exported.frames))
    assert count > 45
    assert share >= 0.9


def test_fp16_keeps_the_named_nodes_in_fp32_and_no_others(demo):
    keep = {"backbone/body/3/block/1/0/Conv", "backbone/body/3/block/1/2/Relu", "backbone/fpn/Add", "im_info"}
    types = [element_types(model.graph) for model in (demo.half, convert_to_fp16(demo.model, keep=keep))]
    changed = {node.name for node in demo.model.graph.node if types[0][node.output[0]] != types[1][node.output[0]]}
    assert changed == keep - {"im_info"}


def test_half_values_are_what_fp16_nodes_read_and_make(calibrated):
    graph = calibrated.source.model.graph
    types, constants = element_types(graph), constants_of(graph)
    nodes = [graph.node[index] for index in find_dense_nodes(graph)]
    expected = {name for node in nodes for name in [*node.input, *node.output] if types.get(name) == TensorProto.FLOAT}
    names = calibrated.source.half_values()
    assert set(names) == expected - set(constants)
    assert len(names) == len(set(names))
    assert "images" in names
