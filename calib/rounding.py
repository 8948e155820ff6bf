"""FP16 as a GPU rounds it, on a CPU.

ONNX Runtime has few FP16 kernels for CPUs. It computes the other nodes in FP32 and drops the casts between them, so
that only the weights are rounded, and a CPU shows less harm than a GPU will do. Here every node states what a GPU does:
inputs from FP16, sums in FP32, the result rounded to FP16. These casts are the file's own, and ONNX Runtime keeps them.
"""

from __future__ import annotations

import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper

from calib.artifact import element_types

MARK = "edgercnn.rounded"  # in the metadata of what is of no use to TensorRT
WIDE, UNROUNDED = "/wide", "/unrounded"  # end the names of values that are FP32 here: read by a node, made by a node


def round_like_gpu(model: ModelProto) -> ModelProto:
    """A copy of the FP16 file `model` for measuring on a CPU; slower, and of no use to TensorRT.

    A GPU's kernel that fuses several nodes rounds once where this rounds after each: this errs on the side of harm.
    """
    result = ModelProto()
    result.CopyFrom(model)
    types = element_types(model.graph)
    nodes: list[NodeProto] = []
    widened: set[str] = set()
    for node in model.graph.node:
        if node.domain or node.op_type == "Cast" or types.get(node.output[0]) != TensorProto.FLOAT16:
            nodes.append(node)
            continue
        wide = NodeProto()
        wide.CopyFrom(node)
        for slot, name in enumerate(node.input):
            if types.get(name) != TensorProto.FLOAT16:
                continue
            if name not in widened:
                nodes.append(_cast(name, name + WIDE, TensorProto.FLOAT))
                widened.add(name)
            wide.input[slot] = name + WIDE
        wide.output[0] = node.output[0] + UNROUNDED
        nodes += [wide, _cast(wide.output[0], node.output[0], TensorProto.FLOAT16)]
    assert widened, "no node of the model computes in FP16"
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    result.metadata_props.add(key=MARK, value="1")
    onnx.checker.check_model(result)
    return result


def _cast(source: str, target: str, element_type: int) -> NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"{target}/Cast", to=element_type)
