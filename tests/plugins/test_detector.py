"""The shipped detector with its ops taken from the kernels: what a TensorRT plan with our plugins computes.

ONNX Runtime computes the network up to each op; the kernels, on the CPU, compute the ops, with the attributes in the
exported file, on pictures with many parts. The detector has three ops: RoiMaxPool is in none that ships.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from onnxruntime import InferenceSession

from export.to_onnx import export_onnx
from plugins.kernels import Kernels
from runtime.conveyor.scene import render_scene
from runtime.detector import open_detector
from tests.plugins.plugin_cases import ATTRIBUTES
from training.checkpoint import load_checkpoint

DEMO = Path(__file__).resolve().parents[2] / "assets" / "conveyor.pt"
METHODS = {
    "RpnProposals": "rpn_proposals",
    "PyramidRoiAlign": "pyramid_roi_align",
    "BoxDetections": "box_detections",
}


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("detector") / "model.onnx"
    export_onnx(*load_checkpoint(DEMO), path)
    return path


@pytest.fixture(scope="module")
def nodes(model_path):
    """The edgercnn nodes of the file, by op type."""
    return {node.op_type: node for node in onnx.load(model_path).graph.node if node.domain == "edgercnn"}


@pytest.fixture(scope="module")
def values(model_path, nodes):
    """Every tensor that goes into or comes out of an op, by name, for a batch of three pictures."""
    model = onnx.load(model_path)
    names = {name for node in nodes.values() for name in (*node.input, *node.output)}
    given = {value.name for value in (*model.graph.input, *model.graph.output)}
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in sorted(names - given))
    session = InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    with open_detector(model_path) as detector:
        prepared = detector.prepare([render_scene(11, index).frame for index in range(3)])
    feed = {"images": prepared.images, "im_info": prepared.im_info}
    wanted = [output.name for output in session.get_outputs()]
    return feed | dict(zip(wanted, session.run(wanted, feed), strict=True))


@pytest.fixture(scope="module")
def kernels(cpu_kernels_path):
    return Kernels(cpu_kernels_path)


def run_node(kernels, node, values):
    """The outputs of `node`, computed by the kernel of its op from the arrays in `values`."""
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    inputs = [values[name] for name in node.input]
    if node.op_type == "RpnProposals":
        levels = (len(inputs) - 1) // 2
        inputs = [inputs[0], inputs[1 : 1 + levels], inputs[1 + levels :]]
    elif node.op_type == "PyramidRoiAlign":
        inputs = [inputs[0], inputs[1:]]
    found = getattr(kernels, METHODS[node.op_type])(*inputs, **attributes)
    return dict(zip(node.output, found if isinstance(found, tuple) else (found,), strict=True))


def test_the_plugins_take_every_attribute_of_the_file(nodes):
    assert set(nodes) == set(METHODS)
    for op_type, node in nodes.items():
        assert {attribute.name for attribute in node.attribute} == set(ATTRIBUTES[op_type])


@pytest.mark.parametrize("op_type", METHODS)
def test_each_kernel_computes_what_the_body_does(kernels, nodes, values, op_type):
    node = nodes[op_type]
    for name, found in run_node(kernels, node, values).items():
        expected = values[name]
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4, err_msg=name)


def test_kernels_in_a_row_detect_what_the_file_detects(kernels, nodes, values, model_path):
    """From the RPN's maps to boxes: every op, and the box head between two of them, takes what the last one gave."""
    proposals = run_node(kernels, nodes["RpnProposals"], values)
    pooled = run_node(kernels, nodes["PyramidRoiAlign"], values | proposals)
    head = box_head(model_path, nodes)
    wanted = [output.name for output in head.get_outputs()]
    headed = dict(zip(wanted, head.run(wanted, pooled), strict=True))
    found = run_node(kernels, nodes["BoxDetections"], values | proposals | headed)
    assert min(found["num_detections"]) >= 3
    np.testing.assert_array_equal(found["num_detections"], values["num_detections"])
    np.testing.assert_array_equal(found["detection_classes"], values["detection_classes"])
    np.testing.assert_allclose(found["detection_boxes"], values["detection_boxes"], rtol=0, atol=1e-3)
    np.testing.assert_allclose(found["detection_scores"], values["detection_scores"], rtol=0, atol=1e-5)


def box_head(model_path, nodes):
    """The part of the file between the pooled features and the last op, as a session of its own."""
    model = onnx.load(model_path)
    _, _, class_logits, bbox_deltas, _ = nodes["BoxDetections"].input
    (pooled,) = nodes["PyramidRoiAlign"].output
    part = onnx.utils.Extractor(model).extract_model([pooled], [class_logits, bbox_deltas])
    del part.functions[:]
    return InferenceSession(part.SerializeToString(), providers=["CPUExecutionProvider"])
