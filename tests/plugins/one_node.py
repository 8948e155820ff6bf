"""ONNX models of one edgercnn node and its body, and the comparison of all faces of its op."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper

from plugins.box_detections.torch_op import box_detections
from plugins.onnx_functions import append_bodies
from plugins.pyramid_roi_align.torch_op import pyramid_roi_align
from plugins.roi_max_pool.torch_op import roi_max_pool
from plugins.rpn_proposals.torch_op import rpn_proposals
from tests.plugins import reference

OPS = {
    "RpnProposals": (rpn_proposals, reference.rpn_proposals, ("rois", "num_rois")),
    "PyramidRoiAlign": (pyramid_roi_align, reference.pyramid_roi_align, ("pooled",)),
    "RoiMaxPool": (roi_max_pool, reference.roi_max_pool, ("pooled",)),
    "BoxDetections": (
        box_detections,
        reference.box_detections,
        ("num_detections", "detection_boxes", "detection_scores", "detection_classes"),
    ),
}
PLAIN_RULE = {"aligned": False, "canonical_scale": 56.0, "canonical_level": 4}


def is_tensors(value):
    return isinstance(value, torch.Tensor) or (isinstance(value, list) and isinstance(value[0], torch.Tensor))


def in_numpy(arguments):
    """An op's arguments in their order, tensors as arrays."""
    return [plain(value) if is_tensors(value) else value for value in arguments.values()]


def named_inputs(arguments):
    """The tensors among an op's arguments, one for each level, by name."""
    inputs = {}
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor):
            inputs[name] = value
        elif is_tensors(value):
            inputs |= {f"{name}_{level}": tensor for level, tensor in enumerate(value)}
    return inputs


def one_node_model(op_type, arguments, opset=18, changes=None):
    """A model of one edgercnn node and its body, with a free batch; checked in full, shapes inferred strictly."""
    outputs = OPS[op_type][2]
    results = OPS[op_type][0](**arguments)
    results = results if isinstance(results, tuple) else (results,)
    values = {**named_inputs(arguments), **dict(zip(outputs, results, strict=True))}
    infos = {}
    for name, tensor in values.items():
        dtype = helper.np_dtype_to_tensor_dtype(tensor.numpy().dtype)
        infos[name] = helper.make_tensor_value_info(name, dtype, [f"{name}_rows", *tensor.shape[1:]])
    numbers = {name: value for name, value in arguments.items() if not is_tensors(value)}
    numbers |= {name: int(value) for name, value in numbers.items() if isinstance(value, bool)}
    node = helper.make_node(
        op_type, list(named_inputs(arguments)), outputs, domain="edgercnn", **numbers | (changes or {})
    )
    graph = helper.make_graph([node], "one", [infos[n] for n in named_inputs(arguments)], [infos[n] for n in outputs])
    bare = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    model = append_bodies(bare)
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    return model


def open_session(model):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run_body(op_type, arguments, session=None):
    session = session or open_session(one_node_model(op_type, arguments))
    return session.run(None, {name: tensor.numpy() for name, tensor in named_inputs(arguments).items()})


def plain(value):
    return [tensor.numpy() for tensor in value] if isinstance(value, list) else value.numpy()


def check_faces(op_type, arguments, session=None, check_reference=True, pooled_atol=1e-5):
    """ONNX body == torch op == reference; gives the body's outputs."""
    torch_op, plain_op, names = OPS[op_type]
    results = run_body(op_type, arguments, session)
    from_torch = torch_op(**arguments)
    expected = [[t.numpy() for t in (from_torch if isinstance(from_torch, tuple) else (from_torch,))]]
    if check_reference:
        from_reference = plain_op(**{name: plain(v) if is_tensors(v) else v for name, v in arguments.items()})
        expected.append(from_reference if isinstance(from_reference, tuple) else (from_reference,))
    tolerances = {"rois": 1e-3, "detection_boxes": 1e-3, "detection_scores": 1e-6, "pooled": pooled_atol}
    for face in expected:
        for name, result, value in zip(names, results, face, strict=True):
            assert result.dtype == value.dtype, name
            np.testing.assert_allclose(result, value, rtol=0, atol=tolerances.get(name, 0), err_msg=name)
    return results
