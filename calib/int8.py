"""INT8 written into the graph: QuantizeLinear and DequantizeLinear around the layers that are chosen.

Two flavours (`calib/quantisers.py` says where quantisers stand):
- "tensorrt": symmetric, zero point 0, weights per output channel, biases as they are. TensorRT 10.3 to 11 and RTX.
- "cpu": unsigned activations with a zero point (U8S8), INT32 biases. ONNX Runtime on x86 with VNNI.

Shapes: O output channels of a layer. Ranges are (low, high) of a value in FP32.
Ref: ONNX QuantizeLinear: y = saturate(round_half_even(x / scale) + zero_point).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from calib.groups import Group, node_indices, output_channel_axis
from calib.quantisers import Quantisers, Read, place_quantisers

MOST = 127  # of the symmetric range: -128 is not used, so that a sign never overflows
LEVELS = 255  # steps of the unsigned range
LEAST_SCALE = 2.0**-20  # FP16's subnormals still have four bits here
LARGEST_HALF = float(np.finfo(np.float16).max)
LEAST_UNSIGNED_SCALE = float(np.finfo(np.float32).tiny)
QUANTISED, DEQUANTISED = "/quantized", "/dequantized"  # end the names of new values
TWIN = "_to_fp16"  # ends the name of the second DequantizeLinear of a value
Range = tuple[float, float]


@dataclass(frozen=True)
class Scale:
    """value = (stored - zero_point) * scale; scale and zero_point are scalars or [O]."""

    scale: np.ndarray  # float32
    zero_point: np.ndarray  # int8 or uint8

    def store(self, values: np.ndarray) -> np.ndarray:
        """float32 `values` as ONNX's QuantizeLinear stores them; [O] scales go along axis 0."""
        shape = (-1,) + (1,) * (values.ndim - 1) if self.scale.ndim else ()
        scale, zero_point = self.scale.reshape(shape), self.zero_point.reshape(shape).astype(np.int32)
        limits = np.iinfo(self.zero_point.dtype)
        with np.errstate(over="ignore"):  # infinity is clipped like all that is too large
            steps = np.rint(values / scale)
        return np.clip(steps + zero_point, limits.min, limits.max).astype(self.zero_point.dtype)


def symmetric_scale(largest: np.ndarray | float, *, half: bool = False) -> Scale:
    """For values from -largest to largest. Where `largest` is 0 all is 0, and any scale is exact.

    Args:
        half: make it a number of FP16, in which it will be stored. What is too large for FP16 will be stored in FP32.
    """
    largest = np.asarray(largest, np.float64)
    scale = np.maximum(np.where(largest > 0, largest, 1.0) / MOST, LEAST_SCALE)
    rounded = np.where(scale < LARGEST_HALF, scale.clip(max=LARGEST_HALF).astype(np.float16), scale) if half else scale
    return Scale(rounded.astype(np.float32), np.zeros(scale.shape, np.int8))


def unsigned_scale(low: float, high: float) -> Scale:
    """For values from `low` to `high`; 0 is a step, so that padding is exact."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max((high - low) / LEVELS, LEAST_UNSIGNED_SCALE) if high > low else 1.0 / LEVELS
    return Scale(np.array(scale, np.float32), np.array(np.rint(-low / scale), np.uint8))


def activation_scale(limits: Range, flavour: str, *, half: bool = False) -> Scale:
    """The scale of a value with these limits."""
    if flavour == "cpu":
        return unsigned_scale(*limits)
    return symmetric_scale(max(abs(limits[0]), abs(limits[1])), half=half)


def weight_scale(weight: np.ndarray, axis: int, *, half: bool = False) -> Scale:
    """One symmetric scale per output channel of float32 `weight`."""
    return symmetric_scale(np.abs(np.moveaxis(weight, axis, 0)).reshape(weight.shape[axis], -1).max(axis=1), half=half)


def quantised_weight(weight: np.ndarray, axis: int, *, half: bool = False) -> np.ndarray:
    """float32 `weight` as it is after INT8: stored, and read back."""
    scale = weight_scale(weight, axis, half=half)
    stored = scale.store(np.moveaxis(weight, axis, 0))
    shape = (-1,) + (1,) * (weight.ndim - 1)
    return np.moveaxis(stored.astype(np.float32) * scale.scale.reshape(shape), 0, axis)


def write_int8(
    graph: GraphProto,
    groups: Sequence[Group],
    chosen: Collection[str],
    ranges: Mapping[str, Range],
    *,
    flavour: str,
    half: bool = False,
) -> int:
    """Quantise the groups whose names are in `chosen`, in place; the number of quantisers on activations.

    Args:
        ranges: of every value that `place_quantisers` names for them.
        half: scales are numbers of FP16, for a graph that becomes FP16 elsewhere.
    """
    layers = node_indices(groups, chosen)
    placed = place_quantisers(graph, layers, flavour)
    missing = [value for value in placed.measured if value not in ranges]
    assert not missing, f"no range of {missing[:3]}"
    scales = {value: activation_scale(ranges[placed.range_of(value)], flavour, half=half) for value in placed.reads}
    writer = _Writer(graph, half)
    if flavour == "cpu":
        writer.quantise_biases(layers, scales)
    for group in groups:
        if group.name in chosen:
            writer.quantise_weight(group)
    writer.quantise_activations(placed, scales)
    writer.finish()
    return len(placed.reads)


def split_dequantisers(graph: GraphProto, half: Collection[str]) -> int:
    """Readers that will be FP16 get a DequantizeLinear of their own, lest a cast stands between it and a layer.

    Args:
        half: names of the nodes that will be FP16. `graph` states the types of its values.

    Returns: how many DequantizeLinear there are more.
    """
    readers: dict[str, list[Read]] = {}
    for index, node in enumerate(graph.node):
        for slot, name in enumerate(node.input):
            readers.setdefault(name, []).append((index, slot))
    stated = {value.name: value for value in graph.value_info}
    nodes: list[NodeProto] = []
    twins = 0
    for node in graph.node:
        nodes.append(node)
        reads = readers.get(node.output[0], []) if node.op_type == "DequantizeLinear" and not node.domain else []
        own = [(index, slot) for index, slot in reads if graph.node[index].name in half]
        if not 0 < len(own) < len(reads):
            continue
        twin = NodeProto.FromString(node.SerializeToString())
        twin.name = twin.output[0] = node.output[0] + TWIN
        graph.value_info.add().CopyFrom(stated[node.output[0]])
        graph.value_info[-1].name = twin.name
        for index, slot in own:
            graph.node[index].input[slot] = twin.name
        nodes.append(twin)
        twins += 1
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    return twins


class _Writer:
    """Collects new nodes and constants, then puts them into the graph: a node stands before its first reader."""

    def __init__(self, graph: GraphProto, half: bool) -> None:
        self.graph, self.half = graph, half
        self.constants = {item.name: item for item in graph.initializer}
        self.before: dict[int, list[NodeProto]] = {}  # index of a node -> new nodes in front of it
        self.inputs: dict[Read, str] = {}  # what a node is to read instead

    def quantise_weight(self, group: Group) -> None:
        """Store the group's weight as INT8 behind a DequantizeLinear."""
        node = self.graph.node[group.nodes[0]]
        axis = output_channel_axis(node)
        weight = numpy_helper.to_array(self.constants[group.weight])
        scale = weight_scale(weight, axis, half=self.half)
        stored = np.moveaxis(scale.store(np.moveaxis(weight, axis, 0)), 0, axis)
        name = self._constant(group.weight + QUANTISED, np.ascontiguousarray(stored))
        dequantise = self._dequantise(name, group.weight, scale, axis)
        self.before.setdefault(group.nodes[0], []).append(dequantise)
        self.inputs.update({(index, 1): dequantise.output[0] for index in group.nodes})

    def quantise_biases(self, layers: Sequence[int], scales: Mapping[str, Scale]) -> None:
        """INT32 biases in steps of (scale of the data) x (scale of the weight), which the integer sum has.

        A bias too large for that stays as it is, and ONNX Runtime computes this layer in FP32.
        """
        for index in layers:
            node = self.graph.node[index]
            if len(node.input) < 3 or not node.input[2]:
                continue
            weight = numpy_helper.to_array(self.constants[node.input[1]])
            bias = numpy_helper.to_array(self.constants[node.input[2]]).astype(np.float64)
            step = scales[node.input[0]].scale * weight_scale(weight, output_channel_axis(node)).scale  # [O]
            steps = np.rint(bias / step)
            if np.abs(steps).max() > np.iinfo(np.int32).max:
                continue
            stored = steps.astype(np.int32)
            name = f"{node.name}:bias"
            scale = Scale(step.astype(np.float32), np.zeros(step.shape, np.int32))
            dequantise = self._dequantise(self._constant(name + QUANTISED, stored), name, scale, 0)
            self.before.setdefault(index, []).append(dequantise)
            self.inputs[index, 2] = dequantise.output[0]

    def quantise_activations(self, placed: Quantisers, scales: Mapping[str, Scale]) -> None:
        """A QuantizeLinear and a DequantizeLinear in front of the first read of each value."""
        for value, reads in placed.reads.items():
            if not reads:
                continue
            first, scale = min(reads)[0], scales[value]
            names = self._scale_names(value, scale)
            stored = value + QUANTISED
            quantise = helper.make_node("QuantizeLinear", [value, *names], [stored], name=stored)
            self.before.setdefault(first, []).extend([quantise, self._dequantise(stored, value, scale, None)])
            self.inputs.update(dict.fromkeys(reads, value + DEQUANTISED))

    def finish(self) -> None:
        """Rewrite the graph's nodes; constants that nobody reads any more go."""
        for (index, slot), name in self.inputs.items():
            self.graph.node[index].input[slot] = name
        nodes: list[NodeProto] = []
        for index, node in enumerate(self.graph.node):
            nodes += [*self.before.get(index, ()), NodeProto.FromString(node.SerializeToString())]
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        read = {name for node in nodes for name in node.input}
        kept = [
            TensorProto.FromString(item.SerializeToString()) for item in self.constants.values() if item.name in read
        ]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)

    def _dequantise(self, stored: str, value: str, scale: Scale, axis: int | None) -> NodeProto:
        names = self._scale_names(value, scale)
        output = value + DEQUANTISED
        node = helper.make_node("DequantizeLinear", [stored, *names], [output], name=output)
        if axis is not None:
            node.attribute.append(helper.make_attribute("axis", axis))
        return node

    def _scale_names(self, value: str, scale: Scale) -> tuple[str, str]:
        return (
            self._constant(f"{value}/scale", scale.scale),
            self._constant(f"{value}/zero_point", scale.zero_point),
        )

    def _constant(self, name: str, values: np.ndarray) -> str:
        self.constants[name] = numpy_helper.from_array(values, name)
        return name
