"""An ONNX graph as steps between values, and parts of it as models that run on their own.

A step is one node with what only prepares its inputs: Cast, QuantizeLinear and DequantizeLinear nodes, constants, and
nodes whose results the other file does not have.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto, helper

from calib.dense_part import DECODING, DOMAIN
from runtime.errors import ArtifactError

PREPARING = ("Cast", "QuantizeLinear", "DequantizeLinear")
OWN = "/own"  # ends the name of a value that a part makes and is given as well
Arrays = Mapping[str, np.ndarray]


class Graph:
    """The main graph of a model, indexed."""

    def __init__(self, model: ModelProto, whose: str) -> None:
        """Index `model`; `whose` names its file.

        Raises:
            ArtifactError: a node reads what no node before it makes.
        """
        self.model, self.whose = model, whose
        self.nodes = list(model.graph.node)
        self.initializers = {item.name: item for item in model.graph.initializer}
        self.inputs = [value.name for value in model.graph.input if value.name not in self.initializers]
        self.maker = {name: index for index, node in enumerate(self.nodes) for name in node.output if name}
        self.reads = [sorted(_names_read(node)) for node in self.nodes]
        self.fixed = self._fixed_values()  # made by nodes, but the same for every picture
        self._functions = {(item.domain, item.name): item for item in model.functions}

    def between(self, outputs: Iterable[str], boundary: Collection[str]) -> tuple[list[int], list[str]]:
        """The nodes (indices, ascending) that make `outputs` from `boundary`, and what they read of `boundary`.

        `outputs` may be in `boundary`: their own nodes are taken even so.
        """
        found: set[int] = set()
        read: set[str] = set()
        waiting = [self.maker[name] for name in outputs]
        while waiting:
            index = waiting.pop()
            if index in found:
                continue
            found.add(index)
            for name in self.reads[index]:
                if name in boundary:
                    read.add(name)
                elif name in self.maker:
                    waiting.append(self.maker[name])
                else:
                    assert name in self.initializers, f"{name} is needed and not given"
        return sorted(found), sorted(read)

    def part(self, outputs: Sequence[str], given: Arrays) -> ModelProto:
        """A model that computes `outputs` from what it needs of `given`.

        Its inputs have the types and shapes of `given`. A value that is asked for and given too is an input under its
        name and an output under its name with OWN behind it.
        """
        indices, read = self.between(outputs, given.keys())
        nodes = [self.nodes[index] for index in indices]
        if any(name in read for node in nodes for name in node.output):
            nodes = [_with_own_outputs(node, read) for node in nodes]
        used = {name for index in indices for name in self.reads[index]}
        graph = helper.make_graph(
            nodes,
            "cut",
            [value_info(name, given[name]) for name in read],
            [ValueInfoProto(name=name + OWN if name in read else name) for name in outputs],
            [item for name, item in self.initializers.items() if name in used],
        )
        functions = self._functions_of(nodes)
        domains = {"", *(node.domain for node in nodes), *(item.domain for item in functions)}
        domains |= {entry.domain for function in functions for entry in function.opset_import}
        return helper.make_model(
            graph,
            ir_version=self.model.ir_version,
            opset_imports=[entry for entry in self.model.opset_import if entry.domain in domains],
            functions=functions,
            producer_name="edgercnn",
        )

    def _functions_of(self, nodes: Iterable[NodeProto]) -> list[onnx.FunctionProto]:
        """The bodies that `nodes` need, those that bodies need included."""
        found: dict[tuple[str, str], onnx.FunctionProto] = {}
        waiting = list(nodes)
        while waiting:
            node = waiting.pop()
            key = (node.domain, node.op_type)
            if key in self._functions and key not in found:
                found[key] = self._functions[key]
                waiting.extend(found[key].node)
        return list(found.values())

    def _fixed_values(self) -> set[str]:
        fixed: set[str] = set()
        known = {*self.inputs, *self.initializers}
        for node, reads in zip(self.nodes, self.reads):
            for name in reads:
                if name not in known:
                    raise ArtifactError(
                        f"{self.whose}: node {node.name!r} reads {name!r}, which no node before makes: export it again."
                    )
            known.update(node.output)
            if all(name in fixed or name in self.initializers for name in reads):
                fixed.update(name for name in node.output if name)
        return fixed


@dataclass(frozen=True)
class Step:
    """What makes `outputs` in the suspect: the node at index `node`, and what prepares its inputs."""

    node: int
    outputs: tuple[str, ...]
    reads: tuple[str, ...]  # shared values and the graph's inputs: what the suspect makes `outputs` from
    reference_reads: tuple[str, ...]  # and the reference
    selects: bool  # it ranks rows and picks some, so that small errors give other rows


class Pair:
    """A suspect and its reference, as steps in the suspect's order. Without a reference, the suspect alone."""

    def __init__(self, reference: Graph | None, suspect: Graph, named: Iterable[str] = ()) -> None:
        """Pair them up; `named` are values to take as shared, whatever makes them."""
        self.reference, self.suspect = reference, suspect
        graphs = [suspect] if reference is None else [reference, suspect]
        common = set.intersection(*({name for name in graph.maker if name not in graph.fixed} for graph in graphs))
        self.shared = {name for name in common if name in named or not all(_is_prepared(name, g) for g in graphs)}
        self.steps = [self._step(index, node) for index, node in enumerate(suspect.nodes) if self._shared_by(node)]
        self.position = {name: index for index, step in enumerate(self.steps) for name in step.outputs}

    def ancestors(self, end: int, *, past_selection: bool) -> list[int]:
        """Positions, ascending, of the steps that steps[end] depends on, itself included; maybe not past selections."""
        found: set[int] = set()
        waiting = [end]
        while waiting:
            position = waiting.pop()
            if position in found or (position != end and self.steps[position].selects and not past_selection):
                continue
            found.add(position)
            waiting.extend(self.position[name] for name in self.steps[position].reads if name in self.position)
        return sorted(found)

    def boundary(self, inside: Iterable[int]) -> set[str]:
        """The values that a part made of the steps at positions `inside` may be given."""
        made = {name for position in inside for name in self.steps[position].outputs}
        return (self.shared - made) | set(self.suspect.inputs)

    def _shared_by(self, node: NodeProto) -> tuple[str, ...]:
        return tuple(name for name in node.output if name in self.shared)

    def _step(self, index: int, node: NodeProto) -> Step:
        outputs = self._shared_by(node)
        boundary = self.shared | set(self.suspect.inputs)
        reads = [
            [] if graph is None else graph.between(outputs, boundary)[1] for graph in (self.suspect, self.reference)
        ]
        selects = node.domain == DOMAIN and node.op_type in DECODING
        return Step(index, outputs, tuple(reads[0]), tuple(reads[1]), selects)


def value_info(name: str, array: np.ndarray) -> ValueInfoProto:
    """Name, type and shape of `array`."""
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)


def _is_prepared(name: str, graph: Graph) -> bool:
    node = graph.nodes[graph.maker[name]]
    return node.domain == "" and node.op_type in PREPARING


def _names_read(node: NodeProto) -> set[str]:
    """What a node reads, from inside its branches and loops too."""
    names = {name for name in node.input if name}
    for graph in _subgraphs(node):
        inner = {name for child in graph.node for name in _names_read(child)} | {value.name for value in graph.output}
        made = {name for child in graph.node for name in child.output}
        names |= inner - made - {value.name for value in graph.input} - {item.name for item in graph.initializer}
    return names


def _subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _with_own_outputs(node: NodeProto, given: Collection[str]) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    for slot, name in enumerate(node.output):
        if name in given:
            copy.output[slot] = name + OWN
    return copy
