"""An FP32 detector in a given mix of precisions: one decision per group of layers, written into the graph.

assignment: group -> "int8", "fp16" or "fp32", of every group that `calib/groups.py` finds
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto

from calib.artifact import element_types, replace_spec, spec_of_model
from calib.bias import correct_biases
from calib.dense_part import find_dense_nodes, is_weighted
from calib.fp16 import check_result, read_fp32_model, with_types, write_fp16
from calib.groups import Group, find_groups, weighted_layers
from calib.int8 import Range, split_dequantisers, write_int8
from calib.quantisers import place_quantisers
from runtime.precision_plan import PrecisionPlan

INT8, FP16, FP32 = "int8", "fp16", "fp32"
LOWEST = {"fp16": FP16, "int8": INT8, "mixed": INT8}  # --precision: what a layer is to become
FALLBACK = {"fp16": FP32, "int8": FP32, "mixed": FP16}  # and what it is where that harms
HALF_OPSET = 19  # the first whose quantisers take FP16
Assignment = Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Calibration:
    """What was measured on images, by name of a value, and how.

    ranges: (low, high). channel_means: float64 [channels] of what layers read; None: biases stay as they are.
    """

    ranges: Mapping[str, Range]
    channel_means: Mapping[str, np.ndarray] | None
    method: str
    images: int
    images_digest: str


@dataclass(frozen=True, eq=False)
class Source:
    """An FP32 detector, its types stated, with its groups and the names of nodes that FP16 cannot hold."""

    model: ModelProto
    groups: tuple[Group, ...]
    beyond_fp16: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the groups."""
        return tuple(group.name for group in self.groups)

    def values_to_measure(self, flavour: str) -> list[str]:
        """Values whose ranges INT8 needs, whatever groups it is for, and what layers read, whose means it needs."""
        graph = self.model.graph
        every = sorted(index for group in self.groups for index in group.nodes)
        read = [graph.node[index].input[0] for index in every]
        return list(dict.fromkeys([*place_quantisers(graph, every, flavour).measured, *read]))

    def half_values(self) -> list[str]:
        """Values that FP16 would have to hold: what nodes of the dense part read and make."""
        graph = self.model.graph
        nodes = [graph.node[index] for index in find_dense_nodes(graph)]
        constants = {item.name for item in graph.initializer}
        types = element_types(graph)
        names = dict.fromkeys(name for node in nodes for name in [*node.input, *node.output])
        return [name for name in names if types.get(name) == TensorProto.FLOAT and name not in constants]


def read_source(model: ModelProto) -> Source:
    """The detector with its groups.

    Raises:
        ArtifactError: it is no EdgeRCNN detector, or not in FP32.
    """
    stated = read_fp32_model(model)
    return Source(stated, tuple(find_groups(stated.graph)))


def convert(
    source: Source, assignment: Assignment, precision: str, calibration: Calibration, *, flavour: str = "tensorrt"
) -> ModelProto:
    """A copy of the source in the precisions of `assignment`, with the plan in its spec.

    Args:
        precision: of the spec: fp16, int8 or mixed. The dense part's other nodes are FP16 in the first and the last.
        flavour: "cpu" goes with int8 alone.

    Raises:
        UserError: a weight that FP16 cannot hold. RunError: the result is not valid ONNX.
    """
    assert set(assignment) == set(source.names), "every group has one precision"
    result = ModelProto()
    result.CopyFrom(source.model)
    spec = spec_of_model(source.model)
    with_half = precision in ("fp16", "mixed")
    assert flavour == "tensorrt" or not with_half, f"{precision} is not for {flavour}"
    quantised = groups_in(assignment, INT8)
    if quantised:
        if calibration.channel_means is not None:
            correct_biases(result.graph, source.groups, quantised, calibration.channel_means, half=with_half)
        write_int8(result.graph, source.groups, quantised, calibration.ranges, flavour=flavour, half=with_half)
        result = _raised_opset(result) if with_half else result
        result = with_types(result)
    if with_half:
        kept = {*layers_of(source.groups, groups_in(assignment, FP32)), *source.beyond_fp16}
        kept |= _readers(source.model.graph, kept)
        half = {result.graph.node[index].name for index in find_dense_nodes(result.graph)} - kept
        split_dequantisers(result.graph, half)
        write_fp16(result.graph, kept)
    replace_spec(
        result,
        spec.replace(
            precision=precision,
            parent_digest=spec.digest(),
            precision_plan=_plan(source, assignment, calibration, flavour, with_half),
        ),
    )
    check_result(result)
    return result


def groups_in(assignment: Assignment, precision: str) -> list[str]:
    """Names of the groups in `precision`, in order."""
    return [name for name, own in assignment.items() if own == precision]


def layers_of(groups: Sequence[Group], chosen: Collection[str]) -> list[str]:
    """Names of the nodes of the chosen groups."""
    return [layer for group in groups if group.name in chosen for layer in group.layers]


def _readers(graph: GraphProto, layers: Collection[str]) -> set[str]:
    """Names of the activations, sums and the like that read results of `layers`.

    They stay FP32 too: TensorRT computes an FP32 layer between a cast from FP16 and a cast to it in FP16.
    """
    made = {name for node in graph.node if node.name in layers for name in node.output}
    readers = (node for node in graph.node if node.domain == "" and not made.isdisjoint(node.input))
    return {node.name for node in readers if not is_weighted(node)}


def _plan(
    source: Source, assignment: Assignment, calibration: Calibration, flavour: str, with_half: bool
) -> PrecisionPlan:
    """Every layer with weights; those in no group are FP32, or FP16 where the dense part is."""
    own = {layer: assignment[group.name] for group in source.groups for layer in group.layers}
    own |= {layer: FP32 for layer in source.beyond_fp16 if own.get(layer) != INT8}
    graph = source.model.graph
    dense = {graph.node[index].name for index in find_dense_nodes(graph)}
    rest = {layer: FP16 if with_half and layer in dense else FP32 for layer in weighted_layers(graph)}
    layers = {**rest, **{layer: own[layer] for layer in rest if layer in own}}
    return PrecisionPlan(
        flavour=flavour,
        method=calibration.method,
        images=calibration.images,
        images_digest=calibration.images_digest,
        **{kind: tuple(layer for layer, mine in layers.items() if mine == kind) for kind in (INT8, FP16, FP32)},
    )


def _raised_opset(model: ModelProto) -> ModelProto:
    """`model` with its standard operators, and those of its bodies, at HALF_OPSET or above.

    From 18 to 19 the operators of our graphs took more types and no other meaning.
    Ref: https://github.com/onnx/onnx/blob/main/docs/Changelog.md#version-19-of-the-default-onnx-operator-set
    """
    for part in [model, *model.functions]:
        for entry in part.opset_import:
            if entry.domain == "":
                entry.version = max(entry.version, HALF_OPSET)
    return model
