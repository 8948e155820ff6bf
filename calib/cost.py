"""How long a layer takes in each precision, estimated: the longer of its arithmetic and its memory traffic.

An estimate ranks layers and mixes; it is no forecast. Kernels reach half of these peaks and less, and fused layers save
traffic that is counted here.
Ref: Williams et al., Roofline: an insightful visual performance model (2009).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnx import GraphProto, NodeProto, numpy_helper

from calib.dense_part import DOMAIN, POOLING
from calib.groups import Group, output_channel_axis

BYTES = {"fp32": 4, "fp16": 2, "int8": 1}  # of one number


@dataclass(frozen=True)
class Device:
    """operations: per second and precision, a multiplication and an addition being two; bandwidth: bytes per second."""

    name: str
    operations: Mapping[str, float]
    bandwidth: float


# Peaks without sparsity and TF32. Jetson AGX Orin Series Technical Brief v1.2: 5.3 TFLOPS FP32, 170 sparse INT8 TOPS
ORIN = Device("Jetson AGX Orin 64 GB", {"fp32": 5.3e12, "fp16": 42.5e12, "int8": 85e12}, 204.8e9)
# Two cores with AVX-512 VNNI at 3 GHz: 32 multiply-adds per core and cycle in FP32, 128 in INT8
X86 = Device("two x86 cores with AVX-512 VNNI", {"fp32": 0.38e12, "fp16": 0.38e12, "int8": 1.5e12}, 20e9)
DEVICES = {"tensorrt": ORIN, "cpu": X86}


@dataclass(frozen=True)
class Cost:
    """Of one group, for one image: multiply-adds, numbers read and written, and numbers of its weight."""

    macs: int
    activations: int
    weights: int

    def seconds(self, precision: str, device: Device) -> float:
        """Estimated time on `device`."""
        traffic = (self.activations + self.weights) * BYTES[precision]
        return max(2 * self.macs / device.operations[precision], traffic / device.bandwidth)


def group_costs(graph: GraphProto, groups: Sequence[Group]) -> dict[str, Cost]:
    """The cost of each group of a detector, whose graph states the shape of every value, whatever its batch."""
    sizes = _sizes(graph)
    weights = {item.name: numpy_helper.to_array(item).shape for item in graph.initializer}
    return {
        group.name: sum_costs([_layer_cost(graph.node[index], sizes, weights) for index in group.nodes])
        for group in groups
    }


def sum_costs(costs: Sequence[Cost]) -> Cost:
    """Of layers that share a weight."""
    return Cost(sum(one.macs for one in costs), sum(one.activations for one in costs), costs[0].weights)


def mix_seconds(costs: Mapping[str, Cost], assignment: Mapping[str, str], device: Device) -> float:
    """Estimated time of all groups in the precisions of `assignment`."""
    return sum(cost.seconds(assignment[name], device) for name, cost in costs.items())


def _layer_cost(node: NodeProto, sizes: Mapping[str, int], weights: Mapping[str, tuple[int, ...]]) -> Cost:
    shape = weights[node.input[1]]
    per_output = math.prod(shape) // shape[output_channel_axis(node)]
    made = sizes[node.output[0]]
    return Cost(made * per_output, made + sizes[node.input[0]], math.prod(shape))


def _sizes(graph: GraphProto) -> dict[str, int]:
    """How many numbers each value has for one image: the first axis is the batch, and behind the pooling batch x R."""
    values = [*graph.input, *graph.value_info, *graph.output]
    shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values}
    rois = [node.output[0] for node in graph.node if (node.domain, node.op_type) == (DOMAIN, "RpnProposals")]
    assert len(rois) == 1, f"{len(rois)} RpnProposals"
    rows = shapes[rois[0]][1]  # R: of [B, R, 4]
    per_roi: set[str] = set()  # values with a row for each roi
    for node in graph.node:
        pooled = node.domain == DOMAIN and node.op_type in POOLING
        if pooled or not per_roi.isdisjoint(node.input):
            per_roi.update(node.output)
    return {name: math.prod(shape[1:]) * (rows if name in per_roi else 1) for name, shape in shapes.items()}
