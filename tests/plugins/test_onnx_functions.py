"""Models with the bodies of their nodes: opsets, names, refusals; and plans of TensorRT-RTX, which takes no plugins."""

from __future__ import annotations

import pytest
import torch

from plugins.onnx_functions import append_bodies
from tests.plugins.one_node import PLAIN_RULE, check_faces, one_node_model, open_session
from tests.plugins.test_torch_ops import ROIS, detection_case, pyramid, rpn_case

SMALL = {
    "RpnProposals": rpn_case(0, batch=1),
    "PyramidRoiAlign": {
        "rois": ROIS[:1],
        "features": pyramid(1, 3),
        "spatial_scales": [0.25, 0.125, 0.0625],
        "output_size": 7,
        "sampling_ratio": 2,
        **PLAIN_RULE,
    },
    "PyramidRoiAlign, few cells": {
        "rois": ROIS[:1],
        "features": pyramid(1, 3)[1:],
        "spatial_scales": [0.125, 0.0625],
        "output_size": 7,
        "sampling_ratio": 2,
        **PLAIN_RULE,
    },
    "PyramidRoiAlign, adaptive": {
        "rois": ROIS[:1],
        "features": pyramid(1, 3),
        "spatial_scales": [0.25, 0.125, 0.0625],
        "output_size": 7,
        "sampling_ratio": 0,
        **PLAIN_RULE,
    },
    "RoiMaxPool": {"rois": ROIS[:1], "features": pyramid(1, 1)[0], "output_size": 7, "spatial_scale": 0.25},
    "BoxDetections": detection_case(0, batch=1),
}


@pytest.mark.parametrize("case", SMALL)
@pytest.mark.parametrize("opset", [20, 21])
def test_bodies_follow_the_opset_of_the_model(case, opset):
    op_type = case.split(",")[0]
    session = open_session(one_node_model(op_type, SMALL[case], opset))
    check_faces(op_type, SMALL[case], session, check_reference=False)


@pytest.mark.parametrize("case", SMALL)
def test_names_inside_a_body_are_its_own(case):
    """TensorRT up to 10.7 binds a function's value wrongly when the model has one of that name."""
    op_type = case.split(",")[0]
    (function,) = one_node_model(op_type, SMALL[case]).functions
    graphs = [function]
    names = [*function.input]
    while graphs:
        for node in graphs.pop().node:
            names += node.output
            graphs += [attribute.g for attribute in node.attribute if attribute.HasField("g")]
            names += [value.name for attribute in node.attribute for value in attribute.g.input]
    assert all(name.startswith(f"{op_type}_") for name in names)
    assert len(names) == len(set(names))


def test_append_bodies_takes_each_type_once_and_leaves_the_model_alone():
    model = one_node_model("RoiMaxPool", SMALL["RoiMaxPool"])
    twin = model.graph.node.add()
    twin.CopyFrom(model.graph.node[0])
    twin.output[0] = "again"
    before = model.SerializeToString()
    again = append_bodies(model)
    assert model.SerializeToString() == before
    assert [function.name for function in again.functions] == ["RoiMaxPool"]
    assert [entry.domain for entry in again.opset_import].count("edgercnn") == 1


def test_append_bodies_refuses_what_no_body_can_serve():
    two = one_node_model("PyramidRoiAlign", SMALL["PyramidRoiAlign"])
    node = two.graph.node.add()
    node.CopyFrom(two.graph.node[0])
    del node.input[-1]
    with pytest.raises(ValueError, match="with 3 and with 4 inputs"):
        append_bodies(two)
    mixed = one_node_model("PyramidRoiAlign", SMALL["PyramidRoiAlign"])
    node = mixed.graph.node.add()
    node.CopyFrom(mixed.graph.node[0])
    next(attribute for attribute in node.attribute if attribute.name == "sampling_ratio").i = 0
    with pytest.raises(ValueError, match=r"sampling_ratio \[0, 2\]"):
        append_bodies(mixed)
    with pytest.raises(ValueError, match="opset 17"):
        one_node_model("RoiMaxPool", SMALL["RoiMaxPool"], opset=17)
    two.graph.node[1].op_type = "RoiAlgin"
    with pytest.raises(ValueError, match=r"edgercnn\.RoiAlgin, there are RpnProposals"):
        append_bodies(two)


# --- TensorRT-RTX


@pytest.fixture(scope="module")
def rtx():
    """tensorrt_rtx with a builder, and the list of its warnings and errors; TensorRT has one logger per process."""
    trt = pytest.importorskip("tensorrt_rtx", reason="the package tensorrt-rtx (requirements-dev.txt) is not installed")

    class Problems(trt.ILogger):
        def __init__(self):
            super().__init__()
            self.messages = []

        def log(self, severity, message):
            if severity <= trt.ILogger.WARNING:
                self.messages.append(message)

    problems = Problems()
    return trt, trt.Builder(problems), problems


def rtx_plan(rtx, model, rois_per_image):
    """The plan for SM86, built without a GPU, for 1 to 3 images."""
    trt, builder, problems = rtx
    problems.messages.clear()
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, problems)
    assert parser.parse(model.SerializeToString()), problems.messages
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    profile = builder.create_optimization_profile()
    for value in (network.get_input(i) for i in range(network.num_inputs)):
        rows = rois_per_image if value.name in ("class_logits", "bbox_deltas") else 1
        profile.set_shape(value.name, *[(images * rows, *value.shape[1:]) for images in (1, 1, 3)])
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None, problems.messages
    assert not problems.messages
    return plan


# RoiAlign is a plugin in TensorRT-RTX, which cannot be made without a GPU's driver
@pytest.mark.parametrize("case", [case for case in SMALL if "adaptive" not in case])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_tensorrt_rtx_builds_a_plan(rtx, case, dtype):
    arguments = dict(SMALL[case])
    for name in {"objectness", "bbox_deltas", "features", "class_logits"} & arguments.keys():
        value = arguments[name]
        arguments[name] = value.to(dtype) if isinstance(value, torch.Tensor) else [level.to(dtype) for level in value]
    assert rtx_plan(rtx, one_node_model(case.split(",")[0], arguments), rois_per_image=20).nbytes < 10e6
