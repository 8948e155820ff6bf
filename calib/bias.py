"""Bias correction: the mean error that quantised weights make is taken off the bias.

A layer computes y = W x + b. With W' in place of W the mean of y moves by (W' - W) E[x], and b takes that back. E[x]
is per input channel, from the calibration images; what padding adds at the borders is passed over.
Ref: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction (2019), section 4.2.

Shapes: O output channels, I input channels of a group convolution's group, g groups.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from onnx import GraphProto, NodeProto, helper, numpy_helper

from calib.groups import Group, output_channel_axis
from calib.int8 import quantised_weight


def correct_biases(
    graph: GraphProto,
    groups: Sequence[Group],
    chosen: Collection[str],
    channel_means: Mapping[str, np.ndarray],
    *,
    half: bool = False,
) -> int:
    """Change the biases of the chosen groups, in place, before their weights are quantised; how many changed.

    Args:
        channel_means: of the data of each layer, float64 [channels]. Layers of one group share a bias, which takes the
            mean of what each would want.
        half: scales will be numbers of FP16.
    """
    constants = {item.name: item for item in graph.initializer}
    changed = 0
    for group in groups:
        nodes = [graph.node[index] for index in group.nodes]
        if group.name not in chosen or any(len(node.input) < 3 or not node.input[2] for node in nodes):
            continue
        weight = numpy_helper.to_array(constants[group.weight])
        error = quantised_weight(weight, output_channel_axis(nodes[0]), half=half).astype(np.float64) - weight
        shifts = [mean_shift(error, node, channel_means[node.input[0]]) for node in nodes]
        bias = constants[nodes[0].input[2]]
        corrected = numpy_helper.to_array(bias).astype(np.float64) - np.mean(shifts, axis=0)
        bias.CopyFrom(numpy_helper.from_array(corrected.astype(np.float32), bias.name))
        changed += 1
    return changed


def mean_shift(error: np.ndarray, node: NodeProto, means: np.ndarray) -> np.ndarray:
    """(W' - W) E[x], float64 [O], of a Conv or Gemm whose weight is off by `error`."""
    if node.op_type == "Gemm":
        return error @ means if output_channel_axis(node) == 0 else means @ error
    groups = next((helper.get_attribute_value(item) for item in node.attribute if item.name == "group"), 1)
    per_channel = error.reshape(*error.shape[:2], -1).sum(axis=2)  # [O, I]
    outputs = len(per_channel) // groups
    own = means.reshape(groups, -1).repeat(outputs, axis=0)  # [O, I]: the channels that each output sees
    return (per_channel * own).sum(axis=1)
