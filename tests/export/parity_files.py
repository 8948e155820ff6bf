"""What the tests of parity share: the demo exported once, ways to break it, pictures, and the command."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, NodeProto, helper, numpy_helper

from calib.artifact import replace_spec, spec_of_model
from calib.fp16 import convert_to_fp16
from export.canvas import choose_canvas, spec_with_canvas
from export.graph import build_graph
from export.parity import main
from export.weights import DEMO_WEIGHTS, load_weights
from runtime.command import run_command
from runtime.conveyor.scene import render_scene
from runtime.preprocess import preprocess

SIZES = ((480, 640), (720, 1280))  # of the pictures: one fills the demo's canvas, one leaves a border
BRIEF = ("--threads", "1", "--frames", "1")


@functools.lru_cache(maxsize=1)
def demo_bytes() -> bytes:
    """The demo's ONNX file."""
    model, spec = load_weights(None)
    return build_graph(model, spec_with_canvas(spec, choose_canvas(spec.input, None))).model.SerializeToString()


def demo_model() -> ModelProto:
    """A copy of it, to be changed."""
    return ModelProto.FromString(demo_bytes())


def write_pictures(folder: Path) -> Path:
    """Scenes with eight parts or more, one of each of SIZES, as a folder of PNGs."""
    folder.mkdir()
    for index, size in enumerate(SIZES, 8):
        cv2.imwrite(str(folder / f"{index:02d}.png"), render_scene(7, index, size).frame)
    return folder


def write_artifacts(folder: Path) -> Path:
    """The demo as conveyor.pt, model.onnx and half.onnx, and pictures/ of two sizes, in `folder`."""
    shutil.copy(DEMO_WEIGHTS, folder / "conveyor.pt")
    saved(demo_model(), folder / "model.onnx")
    saved(convert_to_fp16(demo_model()), folder / "half.onnx")
    write_pictures(folder / "pictures")
    return folder


def parity(*arguments: object) -> tuple[int, dict[str, Any]]:
    """Exit code of the command, and what parity.json says; the output folder is the last argument."""
    output = Path(str(arguments[-1]))
    code = run_command(main, [*map(str, arguments[:-1]), "--output", str(output), *BRIEF])
    file = output / "parity.json"
    return code, json.loads(file.read_text("utf-8")) if file.is_file() else {}


def saved(model: ModelProto, path: Path) -> Path:
    """Write the model; its path."""
    onnx.save(model, path)
    return path


def change_weights(model: ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Replace a constant by what `change` makes of it, in its type."""
    (item,) = [item for item in model.graph.initializer if item.name == name]
    values = numpy_helper.to_array(item)
    changed = np.ascontiguousarray(change(values)).astype(values.dtype)
    assert not np.array_equal(changed, values)
    item.CopyFrom(numpy_helper.from_array(changed, name))


def set_attribute(model: ModelProto, op_type: str, name: str, value: object) -> None:
    """Give the only node of `op_type` another value of an attribute."""
    (node,) = [node for node in model.graph.node if node.op_type == op_type]
    (attribute,) = [attribute for attribute in node.attribute if attribute.name == name]
    assert helper.get_attribute_value(attribute) != value
    attribute.CopyFrom(helper.make_attribute(name, value))


def quantised_model() -> ModelProto:
    """The demo with INT8 activations: a quantiser and its inverse in front of every convolution, ranges as seen."""
    model = demo_model()
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    largest = _largest_values(model, sorted({node.input[0] for node in convolutions}))
    made: dict[str, list[NodeProto]] = {}
    for node in convolutions:
        name = node.input[0]
        if name not in made:
            steps = (("QuantizeLinear", name, "quantized"), ("DequantizeLinear", f"{name}/quantized", "dequantized"))
            limits = [f"{name}/scale", f"{name}/zero"]
            made[name] = [helper.make_node(op, [source, *limits], [f"{name}/{to}"]) for op, source, to in steps]
            model.graph.initializer.append(numpy_helper.from_array(np.float32(largest[name] / 127), limits[0]))
            model.graph.initializer.append(numpy_helper.from_array(np.int8(0), limits[1]))
        node.input[0] = f"{name}/dequantized"
    nodes = [*made["images"]]
    for node in model.graph.node:
        nodes += [node, *(step for name in node.output for step in made.get(name, ()))]
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    change_spec(model, precision="int8")
    return model


def _largest_values(model: ModelProto, names: list[str]) -> dict[str, float]:
    """Largest magnitude of values on one scene."""
    probe = ModelProto.FromString(model.SerializeToString())
    probe.graph.output.extend(value for value in model.graph.value_info if value.name in names)
    session = onnxruntime.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    inputs = preprocess([render_scene(7, 10, SIZES[0]).frame], spec_of_model(model))._asdict()
    made = [name for name in names if name not in inputs]
    values = inputs | dict(zip(made, session.run(made, inputs), strict=True))
    return {name: float(np.abs(values[name]).max()) for name in names}


def change_spec(model: ModelProto, **changes: Any) -> None:
    """Write other fields into the spec, with a digest that is right."""
    replace_spec(model, spec_of_model(model).replace(**changes))
