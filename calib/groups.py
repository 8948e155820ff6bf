"""Which layers can be quantised, and which of them only together.

A group is the Conv or Gemm nodes that share one weight: the RPN's convolution runs on every level, and its weight is
quantised once. Groups are found in the dense part (`calib/dense_part.py`), so the last layers of the RPN and of the box
head are in none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from onnx import GraphProto, NodeProto, helper

from calib.dense_part import find_dense_nodes, is_weighted

QUANTISABLE = ("Conv", "Gemm")


@dataclass(frozen=True)
class Group:
    """Layers that change precision together.

    name: path of their module, `backbone/body/0/0`, or of the first node where the module has several groups. nodes:
    indices in the graph, ascending. layers: names of the nodes.
    """

    name: str
    weight: str
    nodes: tuple[int, ...]
    layers: tuple[str, ...]


def find_groups(graph: GraphProto) -> list[Group]:
    """The groups of `graph`, in data-flow order; `graph` states the shape of every value.

    Left out are layers on maps of one cell, as inside squeeze-and-excitation: they cost nothing and their inputs are
    means, where the steps of INT8 hurt.
    """
    constants = {item.name for item in graph.initializer}
    shapes = spatial_shapes(graph)
    dense = set(find_dense_nodes(graph))
    readers: dict[str, list[int]] = {}  # weight -> nodes
    for index, node in enumerate(graph.node):
        if is_weighted(node) and node.input[1] in constants:
            readers.setdefault(node.input[1], []).append(index)
    groups: list[Group] = []
    names: set[str] = set()
    for weight, nodes in readers.items():
        first = graph.node[nodes[0]]
        able = all(index in dense and graph.node[index].op_type in QUANTISABLE for index in nodes)
        if able and shapes.get(first.input[0]) != (1, 1):
            layers = tuple(graph.node[index].name for index in nodes)
            name = _module(first) if _module(first) not in names else first.name
            names.add(name)
            groups.append(Group(name, weight, tuple(nodes), layers))
    return groups


def weighted_layers(graph: GraphProto) -> list[str]:
    """Names of all convolutions and matrix products of `graph`, in data-flow order."""
    return [node.name for node in graph.node if is_weighted(node)]


def spatial_shapes(graph: GraphProto) -> dict[str, tuple[int, ...]]:
    """(height, width) of each value of four dimensions."""
    values = [*graph.input, *graph.value_info, *graph.output]
    shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values}
    return {name: tuple(shape[2:]) for name, shape in shapes.items() if len(shape) == 4}


def node_indices(groups: Iterable[Group], chosen: Collection[str]) -> list[int]:
    """Indices, ascending, of the nodes of the groups whose names are in `chosen`."""
    return sorted(index for group in groups if group.name in chosen for index in group.nodes)


def output_channel_axis(node: NodeProto) -> int:
    """The axis of a layer's weight that counts its output channels."""
    if node.op_type == "Conv":
        return 0
    transposed = next((helper.get_attribute_value(item) for item in node.attribute if item.name == "transB"), 0)
    return 0 if transposed else 1


def _module(node: NodeProto) -> str:
    """`backbone/body/0/0` of the node `backbone/body/0/0/Conv`."""
    name, _, last = node.name.rpartition("/")
    return name if last.split("_")[0] == node.op_type else node.name
