"""FP16 written into the graph of an exported detector: the dense part in FP16, coordinates and scores in FP32.

Strongly typed TensorRT (10.3 to 11, RTX) and ONNX Runtime take the types as they stand. What is FP16 is decided by
`calib/dense_part.py`; here the weights are converted, casts are put at the borders and the values' types are stated.
The file's inputs and outputs keep their types.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from calib.artifact import element_types, replace_spec, spec_of_model
from calib.dense_part import DOMAIN, find_dense_nodes, missing_landmarks, producers
from runtime.errors import ArtifactError, RunError, UserError
from runtime.spec import DetectorSpec

FP32, FP16 = TensorProto.FLOAT, TensorProto.FLOAT16
SUFFIX = {FP32: "to_fp32", FP16: "to_fp16"}  # of a cast's name
LARGEST = float(np.finfo(np.float16).max)  # 65504

QUANTISERS = ("QuantizeLinear", "DequantizeLinear")
INTEGER = ("DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul")  # other tools' INT8

# float32 inputs, by position, of nodes that compute in FP16: Resize's roi and scales, and the rois of pooling
ALWAYS_FP32 = {("", "Resize"): (1, 2), (DOMAIN, "PyramidRoiAlign"): (0,), (DOMAIN, "RoiMaxPool"): (0,)}


@dataclass(frozen=True)
class Precisions:
    """How many nodes of a model compute in FP16, how many of each op type in FP32, and how many casts there are."""

    fp16: int
    fp32: dict[str, int]
    casts: int


def convert_to_fp16(model: ModelProto, *, keep: Collection[str] = ()) -> ModelProto:
    """A copy of `model` whose dense part computes in FP16.

    Its spec has precision "fp16" and names the FP32 file's spec as parent. Bodies, names and shapes stay.

    Args:
        model: as export/to_onnx.py writes it, in FP32.
        keep: names of nodes that stay FP32.

    Raises:
        ArtifactError: it is no EdgeRCNN model, not FP32, or its spec and digest disagree.
        UserError: a weight that FP16 cannot hold.
        RunError: the result is not valid ONNX.
    """
    result = read_fp32_model(model)
    spec = spec_of_model(result)
    write_fp16(result.graph, keep)
    replace_spec(result, spec.replace(precision="fp16", parent_digest=spec.digest()))
    check_result(result)
    return result


def read_fp32_model(model: ModelProto) -> ModelProto:
    """A copy of a detector in FP32 that states the type and shape of every value.

    Raises:
        ArtifactError: it is no EdgeRCNN model, not FP32, quantised, or its spec and digest disagree.
    """
    spec = spec_of_model(model)
    result = with_types(model)
    _check_is_fp32(result, spec)
    return result


def write_fp16(graph: GraphProto, keep: Collection[str] = ()) -> None:
    """The dense part of `graph`, in place, in FP16, but for the nodes named in `keep`.

    Quantisers of values in FP16, and those that FP16 nodes read, take and give FP16; their scales are rounded to it.

    Raises:
        UserError: a weight that FP16 cannot hold.
    """
    dense = [index for index in find_dense_nodes(graph) if graph.node[index].name not in keep]
    dense = _with_quantisers(graph, dense)
    _check_weights(graph, dense)
    types = element_types(graph)
    mark_values_fp16(graph, dense, types)
    convert_initializers(graph, dense, types)
    insert_casts(graph, dense, types)


def _with_quantisers(graph: GraphProto, dense: Sequence[int]) -> list[int]:
    """`dense` with the quantisers that belong to it, and without others.

    A QuantizeLinear does if what it quantises is made there, a DequantizeLinear if it is read there alone.
    """
    chosen = set(dense)
    made = producers(graph)
    readers: dict[str, list[int]] = {}
    for index, node in enumerate(graph.node):
        for name in node.input:
            readers.setdefault(name, []).append(index)
    for index, node in enumerate(graph.node):
        if node.domain or node.op_type not in QUANTISERS:
            continue
        if node.op_type == "QuantizeLinear":
            belongs = made.get(node.input[0]) in chosen
        else:
            read_by = readers.get(node.output[0], [])
            belongs = bool(read_by) and chosen.issuperset(read_by)
        (chosen.add if belongs else chosen.discard)(index)
    return sorted(chosen)


def count_precisions(model: ModelProto) -> Precisions:
    """Of the standard operators that make floating-point numbers, by the type of their result."""
    types = element_types(with_types(model).graph)
    made = [(node.op_type, types.get(node.output[0])) for node in model.graph.node if node.domain == ""]
    return Precisions(
        fp16=sum(op_type != "Cast" and made_type == FP16 for op_type, made_type in made),
        fp32=dict(Counter(op_type for op_type, made_type in made if op_type != "Cast" and made_type == FP32)),
        casts=sum(op_type == "Cast" for op_type, _ in made),
    )


def mark_values_fp16(graph: GraphProto, dense: Collection[int], types: dict[str, int]) -> int:
    """State in `types` and in `graph` that the float32 results of the `dense` nodes are FP16; how many there are."""
    made = {name for index in dense for name in graph.node[index].output if types.get(name) == FP32}
    types.update(dict.fromkeys(made, FP16))
    stated = [value for value in graph.value_info if value.name in made]
    for value in stated:
        value.type.tensor_type.elem_type = FP16
    assert len(stated) == len(made), f"types of {len(stated)} of {len(made)} values are stated"
    return len(made)


def convert_initializers(graph: GraphProto, dense: Collection[int], types: dict[str, int]) -> int:
    """Constants that `dense` nodes compute with become FP16, under their names; how many did.

    One that FP32 nodes read too is kept for them, and the dense nodes get a copy.
    """
    halves: set[str] = set()
    others: set[str] = set()
    for index, node in enumerate(graph.node):
        slots = set(_data_slots(node, types)) if index in dense else set()
        for slot, name in enumerate(node.input):
            (halves if slot in slots else others).add(name)
    converted = [item for item in graph.initializer if item.name in halves and item.data_type == FP32]
    copies = {}
    for item in converted:
        half = numpy_helper.from_array(numpy_helper.to_array(item).astype(np.float16), item.name)
        if item.name in others:
            half.name = copies[item.name] = _new_name(types, f"{item.name}/{SUFFIX[FP16]}")
            graph.initializer.append(half)
        else:
            item.CopyFrom(half)
        types[half.name] = FP16
    for index in dense:
        node = graph.node[index]
        for slot in _data_slots(node, types):
            node.input[slot] = copies.get(node.input[slot], node.input[slot])
    return len(converted)


def insert_casts(graph: GraphProto, dense: Collection[int], types: dict[str, int]) -> int:
    """One Cast for each value that is read in the type it has not; how many there are now.

    It stands before the first node that reads it.
    """
    shapes = {value.name: value for value in [*graph.value_info, *graph.input]}
    nodes: list[NodeProto] = []
    casts: dict[tuple[str, int], str] = {}
    for index, node in enumerate(graph.node):
        half_slots = set(_data_slots(node, types)) if index in dense else set()
        for slot, name in enumerate(node.input):
            wanted = FP16 if slot in half_slots else FP32
            if types.get(name) not in (FP32, FP16) or types[name] == wanted or _takes_any_float(node):
                continue
            if (name, wanted) not in casts:
                casts[name, wanted] = _new_name(types, f"{name}/{SUFFIX[wanted]}")
                types[casts[name, wanted]] = wanted
                nodes.append(_cast(name, casts[name, wanted], wanted))
                graph.value_info.append(_retyped(shapes[name], casts[name, wanted], wanted))
            node.input[slot] = casts[name, wanted]
        nodes.append(node)
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    return len(casts)


def _data_slots(node: NodeProto, types: dict[str, int]) -> list[int]:
    """Positions of the inputs that a node computes with: those that have its type."""
    fixed = ALWAYS_FP32.get((node.domain, node.op_type), ())
    return [slot for slot, name in enumerate(node.input) if slot not in fixed and types.get(name) in (FP32, FP16)]


def _takes_any_float(node: NodeProto) -> bool:
    """Nodes whose result does not depend on the type: no cast is needed in front of them."""
    return node.domain == "" and node.op_type in ("Cast", "Shape", "Size")


def _cast(source: str, target: str, element_type: int) -> NodeProto:
    return helper.make_node("Cast", [source], [target], name=target, to=element_type)


def _retyped(value: ValueInfoProto, name: str, element_type: int) -> ValueInfoProto:
    copy = ValueInfoProto()
    copy.CopyFrom(value)
    copy.name = name
    copy.type.tensor_type.elem_type = element_type
    return copy


def _new_name(types: dict[str, int], name: str) -> str:
    assert name not in types, f"there is a value {name!r} already"
    return name


def with_types(model: ModelProto) -> ModelProto:
    """A copy in which the type and shape of every value are stated."""
    try:
        return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        reason = str(error).splitlines()[0]
        raise ArtifactError(f"the model is not valid ONNX ({reason}): export it again.") from error


def _check_is_fp32(model: ModelProto, spec: DetectorSpec) -> None:
    missing = missing_landmarks(model.graph)
    if missing:
        raise ArtifactError(
            f"the model has no {DOMAIN}.{' and no '.join(missing)} node: expected a detector with its custom nodes, as "
            "export/to_onnx.py writes it; export it again."
        )
    if spec.precision != "fp32":
        raise ArtifactError(
            f"the model has precision {spec.precision} already: give the FP32 file that it was made from."
        )
    of_int8 = (*QUANTISERS, *INTEGER)
    quantised = [node.name for node in model.graph.node if node.domain == "" and node.op_type in of_int8]
    if quantised:
        raise ArtifactError(
            f"the model says precision fp32, but {quantised[0]!r} quantises, so another tool has quantised it: give "
            "the FP32 file that it was made from."
        )
    named = [name for name, element_type in element_types(model.graph).items() if element_type == FP16]
    if named:
        raise ArtifactError(
            f"the model says precision fp32, but {named[0]!r} is FP16, so it was edited: export the model again."
        )


def _check_weights(graph: GraphProto, dense: Collection[int]) -> None:
    """Every constant of the dense part fits into FP16. Numbers too small for it become 0 or lose digits: no harm."""
    read = {name for index in dense for name in graph.node[index].input}
    for item in graph.initializer:
        if item.name not in read or item.data_type != FP32:
            continue
        largest = float(np.abs(numpy_helper.to_array(item)).max(initial=0.0))
        if not largest <= LARGEST:  # written so that NaN is refused
            raise UserError(
                f"weight {item.name!r} reaches {largest:g}, and FP16 ends at {LARGEST:g}: train the model again with "
                "weight decay, or stay with the FP32 file."
            )


def check_result(model: ModelProto) -> None:
    """See that a converted model is valid ONNX.

    Raises:
        RunError: it is not.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise RunError(f"the converted graph is not valid ONNX: {error}") from error
