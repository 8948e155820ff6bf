"""Stages of a checkpoint and of an ONNX file: together they are the whole network, and each is its part."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from calib.fp16 import convert_to_fp16
from export.stages import BACKBONE, FPN, run_alone, run_from_image, stages_of
from export.stages_cut import cut_model
from export.stages_onnx import OnnxStages, find_landmarks
from export.stages_torch import TorchStages
from export.to_onnx import export_onnx
from runtime.detector import open_detector
from runtime.errors import ArtifactError
from runtime.preprocess import preprocess
from tests.export.conftest import CASES
from tests.helpers import random_frame
from training.backend import TorchBackend


@pytest.fixture
def prepared(exported):
    return preprocess([random_frame(11, 301, 420)], exported.spec)


@pytest.fixture
def in_torch(exported) -> TorchStages:
    return TorchStages(exported.model, exported.spec)


@pytest.fixture
def in_onnx(exported) -> OnnxStages:
    return OnnxStages(onnx.load(exported.path), exported.spec, threads=1)


def same(first, second, **tolerance):
    assert first.keys() == second.keys()
    for key, values in first.items():
        np.testing.assert_allclose(second[key], values, err_msg=key, **(tolerance or {"rtol": 0, "atol": 0}))


def test_stages_of_a_checkpoint_are_the_whole_model(in_torch, exported, prepared):
    outputs = run_from_image(in_torch, prepared).outputs
    expected = TorchBackend(in_torch.model, exported.spec).infer(*prepared)
    assert int(expected[0][0, 0]) > 5
    for value, wanted in zip(outputs, expected, strict=True):
        np.testing.assert_array_equal(value, wanted)


def test_stages_of_a_file_are_the_whole_graph(in_onnx, exported, prepared):
    outputs = run_from_image(in_onnx, prepared).outputs
    with open_detector(exported.path, providers=["cpu"], threads=1) as detector:
        expected = detector.infer(prepared)
    count = int(expected.num_detections[0, 0])
    assert count > 5
    assert outputs.num_detections[0, 0] == count
    np.testing.assert_allclose(outputs.detection_boxes, expected.detection_boxes, atol=1e-3)
    np.testing.assert_allclose(outputs.detection_scores, expected.detection_scores, atol=1e-5)
    np.testing.assert_array_equal(outputs.detection_classes, expected.detection_classes)


def test_every_stage_of_a_file_alone_is_the_checkpoints(in_torch, in_onnx, prepared):
    given = run_from_image(in_torch, prepared)
    alone = run_alone(in_onnx, given)
    expected, found = given.tensors(), alone.tensors()
    for key, values in expected.items():
        scale = float(np.abs(values).max())
        np.testing.assert_allclose(found[key], values, atol=2e-5 * scale, err_msg=key)
    np.testing.assert_allclose(alone.proposals, given.proposals, atol=1e-2)


def test_a_detector_alone_on_its_own_inputs_gives_what_it_gave(in_torch, prepared):
    given = run_from_image(in_torch, prepared)
    kept = {key: values.copy() for key, values in given.tensors().items()}
    alone = run_alone(in_torch, given)
    same(given.tensors(), alone.tensors())
    np.testing.assert_array_equal(alone.proposals, given.proposals)
    same(kept, given.tensors())  # nothing that was given has been changed


def test_every_tensor_has_its_row(in_torch, exported, prepared):
    stages = stages_of(exported.spec)
    keys = set(run_from_image(in_torch, prepared).tensors())
    assert {stage.key for stage in stages} == keys | {"proposals", "boxes"}
    assert len({stage.title for stage in stages}) == len(stages)


def test_levels_stand_in_the_order_of_the_data_flow(conveyor):
    order = [stage.key for stage in stages_of(conveyor.spec) if stage.kind in (BACKBONE, FPN)]
    assert order == ["backbone.0", "backbone.1", "backbone.2", "fpn.2", "fpn.1", "fpn.0", "fpn.3"]


def test_fp16_files_are_cut_at_the_same_values(conveyor):
    model = onnx.load(conveyor.path)
    half = convert_to_fp16(model)
    assert find_landmarks(half.graph, conveyor.spec) == find_landmarks(model.graph, conveyor.spec)
    prepared = preprocess([random_frame(11, 301, 420)], conveyor.spec)
    given = run_from_image(OnnxStages(model, conveyor.spec, threads=1), prepared)
    found = run_alone(OnnxStages(half, conveyor.spec, threads=1), given).tensors()
    for key, values in given.tensors().items():
        assert found[key].dtype == np.float32
        np.testing.assert_allclose(found[key], values, atol=2e-2 * float(np.abs(values).max()), err_msg=key)


def test_a_file_of_fixed_batch_gives_the_first_images_values(conveyor, tmp_path):
    path = tmp_path / "three.onnx"
    export_onnx(conveyor.model, conveyor.model.spec, path, size=CASES["conveyor"][0], batch=3)
    prepared = preprocess([random_frame(11, 301, 420)], conveyor.spec)
    expected = run_from_image(OnnxStages(onnx.load(conveyor.path), conveyor.spec, threads=1), prepared)
    found = run_from_image(OnnxStages(onnx.load(path), conveyor.spec, threads=1), prepared)
    same(expected.tensors(), found.tensors(), rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(found.outputs.num_detections, expected.outputs.num_detections)


def without_pooling(graph):
    graph.node.remove(next(node for node in graph.node if node.op_type == "PyramidRoiAlign"))


def rename_lateral(graph):
    node = next(node for node in graph.node if node.name.startswith("backbone/fpn/inner_blocks/1/"))
    node.name = "else/Conv"


def drop_level(graph):
    node = next(node for node in graph.node if node.op_type == "RpnProposals")
    del node.input[1]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (without_pooling, "0 nodes edgercnn.PyramidRoiAlign"),
        (rename_lateral, "0 convolutions backbone/fpn/inner_blocks/1/"),
        (drop_level, "reads 7 maps, and the spec has 4 levels"),
    ],
)
def test_graphs_of_another_form_are_refused(conveyor, change, complaint):
    model = onnx.load(conveyor.path)
    change(model.graph)
    with pytest.raises(ArtifactError, match=complaint):
        find_landmarks(model.graph, conveyor.spec)


def small_model():
    """c = (a + b) * a, d = c - b."""
    names = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in ("a", "b", "s", "c", "d")
    ]
    nodes = [
        onnx.helper.make_node(op, inputs, [output])
        for op, inputs, output in (("Add", ["a", "b"], "s"), ("Mul", ["s", "a"], "c"), ("Sub", ["c", "b"], "d"))
    ]
    graph = onnx.helper.make_graph(nodes, "small", names[:2], names[4:], value_info=names[2:4])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)


def test_a_cut_computes_what_lies_between():
    part = cut_model(small_model(), ["s", "a"], ["c"])
    onnx.checker.check_model(part, full_check=True)
    assert [node.op_type for node in part.graph.node] == ["Mul"]
    session = onnxruntime.InferenceSession(part.SerializeToString(), providers=["CPUExecutionProvider"])
    values = {"s": np.array([2, 3], np.float32), "a": np.array([5, 7], np.float32)}
    assert session.run(["c"], values)[0].tolist() == [10, 21]


def test_a_cut_that_leaves_an_input_out_is_refused():
    with pytest.raises(ArtifactError, match="d depends on b past c"):
        cut_model(small_model(), ["c"], ["d"])


def test_a_cut_at_an_unknown_value_is_refused():
    with pytest.raises(ArtifactError, match="no value x"):
        cut_model(small_model(), ["x"], ["d"])
