"""A tiny ONNX file with a detector's inputs, outputs and metadata: it finds the same parts in every image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from runtime.spec import DetectorSpec
from tests.helpers_spec import spec_mapping

FLOAT, INT = TensorProto.FLOAT, TensorProto.INT32
FRACTIONS = np.array([[0.1, 0.2, 0.4, 0.6], [0.5, 0.5, 0.9, 1.0], [0.0, 0.0, 0.2, 0.3]], np.float32)  # of the image
SCORES = np.array([0.9, 0.6, 0.2], np.float32)
CLASSES = np.array([0, 2, 1], np.int32)


def small_spec(**input_changes: object) -> DetectorSpec:
    mapping = spec_mapping()
    mapping["input"].update(input_changes)
    return DetectorSpec.from_json(json.dumps(mapping))


def fixed_outputs(spec: DetectorSpec) -> dict[str, np.ndarray]:
    """The four outputs for one image, boxes still as fractions of its sides."""
    rows, found = spec.detection.max_detections, len(SCORES)
    outputs = {
        "count": np.array([[found]], np.int32),
        "boxes": np.zeros((1, rows, 4), np.float32),
        "scores": np.zeros((1, rows), np.float32),
        "classes": np.full((1, rows), -1, np.int32),
    }
    outputs["boxes"][0, :found], outputs["scores"][0, :found], outputs["classes"][0, :found] = (
        FRACTIONS,
        SCORES,
        CLASSES,
    )
    return outputs


def write_onnx(
    path: Path,
    spec: DetectorSpec | None = None,
    *,
    batch: int | str = 1,
    metadata: dict[str, str] | None = None,
    outputs: dict[str, np.ndarray] | None = None,
) -> DetectorSpec:
    """Write the file and return its spec; `metadata` and `outputs` replace what a good file has."""
    spec = spec or small_spec()
    names = spec.outputs
    made = {**fixed_outputs(spec), **(outputs or {})}
    constants = [numpy_helper.from_array(value, name) for name, value in made.items()]
    for name, value in [("axis_h", [0]), ("axis_w", [1]), ("axis_sh", [2]), ("axis_sw", [3]), ("one", [1])]:
        constants.append(numpy_helper.from_array(np.array(value, np.int64), name))
    nodes = [helper.make_node("Gather", ["im_info", axis], [side], axis=1) for axis, side in _SIDES]
    nodes += [
        helper.make_node("Div", ["valid_h", "scale_y"], ["image_h"]),
        helper.make_node("Div", ["valid_w", "scale_x"], ["image_w"]),
        helper.make_node("Concat", ["image_w", "image_h", "image_w", "image_h"], ["extent"], axis=1),  # [B, 4]
        helper.make_node("Unsqueeze", ["extent", "one"], ["extents"]),  # [B, 1, 4]
        helper.make_node("Mul", ["boxes", "extents"], [names.detection_boxes]),
        helper.make_node("Shape", ["im_info"], ["batch"], end=1),
        helper.make_node("Concat", ["batch", "one"], ["batch_by_one"], axis=0),
    ]
    for source, target in [
        ("count", names.num_detections),
        ("scores", names.detection_scores),
        ("classes", names.detection_classes),
    ]:
        nodes.append(helper.make_node("Expand", [source, "batch_by_one"], [target]))
    rows = spec.detection.max_detections
    model = _model(spec, batch, rows, nodes, constants)
    default = {"edgercnn.spec": spec.to_json(), "edgercnn.digest": spec.digest()}
    helper.set_model_props(model, default if metadata is None else metadata)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return spec


_SIDES = [("axis_h", "valid_h"), ("axis_w", "valid_w"), ("axis_sh", "scale_y"), ("axis_sw", "scale_x")]


def _model(spec: DetectorSpec, batch: int | str, rows: int, nodes: list[Any], constants: list[Any]) -> onnx.ModelProto:
    names = spec.outputs
    inputs = [
        helper.make_tensor_value_info("images", FLOAT, [batch, 3, spec.input.height, spec.input.width]),
        helper.make_tensor_value_info("im_info", FLOAT, [batch, 4]),
    ]
    outputs = [
        helper.make_tensor_value_info(names.num_detections, INT, [batch, 1]),
        helper.make_tensor_value_info(names.detection_boxes, FLOAT, [batch, rows, 4]),
        helper.make_tensor_value_info(names.detection_scores, FLOAT, [batch, rows]),
        helper.make_tensor_value_info(names.detection_classes, INT, [batch, rows]),
    ]
    graph = helper.make_graph(nodes, "fixed_detections", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
