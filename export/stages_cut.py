"""A sub-model: the part of an ONNX model between some of its values, with the bodies of our ops."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import ModelProto, ValueInfoProto

from calib.dense_part import producers
from runtime.errors import ArtifactError


def cut_model(model: ModelProto, inputs: Sequence[str], outputs: Sequence[str]) -> ModelProto:
    """The nodes that make `outputs` from `inputs`, as a model with these inputs and outputs.

    Args:
        model: with the types of its values stated (`graph.value_info`); it is left as it is.

    Raises:
        ArtifactError: a value is unknown, or `outputs` depend on more than `inputs`.
    """
    graph = model.graph
    known = {value.name: value for value in [*graph.value_info, *graph.input, *graph.output]}
    unknown = [name for name in (*inputs, *outputs) if name not in known]
    if unknown:
        raise ArtifactError(f"the graph has no value {unknown[0]} of a stated type: export the model again.")
    kept, read = _nodes_between(model, inputs, outputs)
    missing = [value.name for value in graph.input if value.name in read and value.name not in inputs]
    if missing:
        raise ArtifactError(f"{outputs[0]} depends on {missing[0]} past {', '.join(inputs)}: export the model again.")
    part = ModelProto()
    part.ir_version = model.ir_version
    part.opset_import.extend(model.opset_import)
    part.functions.extend(model.functions)
    part.graph.name = f"{graph.name} part"
    part.graph.node.extend(graph.node[index] for index in kept)
    part.graph.initializer.extend(item for item in graph.initializer if item.name in read)
    part.graph.input.extend(_copies(known, inputs))
    part.graph.output.extend(_copies(known, outputs))
    made = {name for index in kept for name in graph.node[index].output} - set(outputs)
    part.graph.value_info.extend(value for value in graph.value_info if value.name in made)
    return part


def _nodes_between(model: ModelProto, inputs: Sequence[str], outputs: Sequence[str]) -> tuple[list[int], set[str]]:
    """Indices of the nodes, ascending, and all values that are read."""
    producer = producers(model.graph)
    nodes: set[int] = set()
    read: set[str] = set()
    open_values = list(outputs)
    while open_values:
        name = open_values.pop()
        read.add(name)
        index = producer.get(name)
        if name in inputs or index is None or index in nodes:
            continue
        nodes.add(index)
        open_values.extend(value for value in model.graph.node[index].input if value)
    return sorted(nodes), read


def _copies(known: dict[str, ValueInfoProto], names: Sequence[str]) -> list[ValueInfoProto]:
    return [ValueInfoProto.FromString(known[name].SerializeToString()) for name in names]
