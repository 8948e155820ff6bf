"""Small graphs written by hand, and questions to graphs that several tests ask."""

from __future__ import annotations

import numpy as np
import onnxruntime
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

WEIGHTED = ("Conv", "Gemm")


def node(op_type: str, inputs: str, outputs: str, domain: str = "", **attributes: object) -> NodeProto:
    """A node called like its first result; names of inputs and outputs are parted by blanks."""
    made = outputs.split()
    return helper.make_node(op_type, inputs.split(), made, name=made[0], domain=domain, **attributes)


def graph_of(nodes: list[NodeProto], constants: dict[str, np.ndarray] | None = None, shapes=None) -> GraphProto:
    """A graph with these nodes; weights `w...` that `constants` lacks are 1. shapes: name -> shape, of float32."""
    names = {name for item in nodes for name in item.input if name[0] == "w"}
    constants = {**dict.fromkeys(sorted(names), np.ones((1, 1, 1, 1), np.float32)), **(constants or {})}
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (shapes or {}).items()]
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    return helper.make_graph(nodes, "test", [], [], initializers, value_info=values)


def constants_of(graph: GraphProto) -> dict[str, np.ndarray]:
    return {item.name: numpy_helper.to_array(item) for item in graph.initializer}


def makers_of(graph: GraphProto) -> dict[str, NodeProto]:
    """Value -> the node that makes it."""
    return {name: item for item in graph.node for name in item.output}


def layers_with_weights(model: ModelProto) -> list[NodeProto]:
    return [item for item in model.graph.node if item.domain == "" and item.op_type in WEIGHTED]


def rename_everything(model: ModelProto) -> None:
    """Every node, value and weight called m0, n0, m1, ...; inputs and outputs keep their names."""
    kept = {value.name for value in [*model.graph.input, *model.graph.output]} | {""}
    names = [name for item in model.graph.node for name in [*item.input, *item.output] if name not in kept]
    new = {name: f"n{index}" for index, name in enumerate(dict.fromkeys(names))}
    for index, item in enumerate(model.graph.node):
        item.name = f"m{index}"
        item.input[:] = [new.get(name, name) for name in item.input]
        item.output[:] = [new.get(name, name) for name in item.output]
    for item in [*model.graph.initializer, *model.graph.value_info]:
        item.name = new.get(item.name, item.name)


def value_info(name: str, element_type: int = TensorProto.FLOAT, shape: list | None = None) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, element_type, shape)


def session_of(model: ModelProto) -> onnxruntime.InferenceSession:
    """One thread, and every node as it stands."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
