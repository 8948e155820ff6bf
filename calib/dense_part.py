"""Which nodes of an exported detector may leave FP32: the convolutional part, found by structure, not by names.

The graph, with the custom nodes of domain `edgercnn` as landmarks:

    images -> convolutions, FPN -> RPN convolution -> [last RPN convolutions] -> RpnProposals -> rois
                               \\-> pooling of rois -> box head -> [last Gemms] -> BoxDetections

The dense part starts at the first convolution (what may come before it prepares pixels) and ends before the brackets:
the last layers in front of RpnProposals and BoxDetections make coordinates, and scores that are ranked.
"""

from __future__ import annotations

from collections.abc import Iterable

from onnx import GraphProto, NodeProto

DOMAIN = "edgercnn"
POOLING = ("PyramidRoiAlign", "RoiMaxPool")  # features in the type of the dense part, rois always float32
DECODING = ("RpnProposals", "BoxDetections")  # float32 throughout
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")

# Operators whose results in FP16 are those in FP32, rounded. Not among them, so always FP32: what sums over an image
# (ReduceMean, GlobalAveragePool). A stride-8 map of 100 x 168 cells with a mean of 4 has a sum of 67,200, above FP16's
# largest number, 65,504; and a running sum of 2,048 or more no longer takes in 0.5.
ROUNDED = (
    *WEIGHTED,
    *("Relu", "LeakyRelu", "HardSwish", "HardSigmoid", "Sigmoid", "Clip"),
    *("Add", "Mul", "MaxPool", "Resize"),
    *("Concat", "Flatten", "Identity", "Reshape", "Transpose"),
    *("QuantizeLinear", "DequantizeLinear"),
)


def find_dense_nodes(graph: GraphProto) -> list[int]:
    """Indices, ascending, of the nodes that may compute in less than FP32; `graph` has its nodes in data-flow order."""
    kept = _last_layers(graph)
    dense = []
    carried: set[str] = set()  # values that come from a convolution
    for index, node in enumerate(graph.node):
        if node.domain == DOMAIN and node.op_type in DECODING:
            continue
        if is_weighted(node) or not carried.isdisjoint(node.input):
            carried.update(node.output)
            if index not in kept and _may_be_rounded(node):
                dense.append(index)
    return dense


def is_weighted(node: NodeProto) -> bool:
    """Whether `node` is a convolution or a matrix product."""
    return node.domain == "" and node.op_type in WEIGHTED


def producers(graph: GraphProto) -> dict[str, int]:
    """Index of the node that makes each value."""
    return {name: index for index, node in enumerate(graph.node) for name in node.output}


def _may_be_rounded(node: NodeProto) -> bool:
    return node.op_type in (POOLING if node.domain == DOMAIN else ROUNDED if node.domain == "" else ())


def _last_layers(graph: GraphProto) -> set[int]:
    """From the inputs of the decoding nodes back to the nearest layer with weights, that layer included."""
    producer = producers(graph)
    decoding = [node for node in graph.node if node.domain == DOMAIN and node.op_type in DECODING]
    found: set[int] = set()
    open_values: list[str] = [name for node in decoding for name in node.input]
    while open_values:
        index = producer.get(open_values.pop())
        if index is None or index in found or graph.node[index].domain == DOMAIN:
            continue
        found.add(index)
        if not is_weighted(graph.node[index]):
            open_values.extend(graph.node[index].input)
    return found


def missing_landmarks(graph: GraphProto) -> Iterable[str]:
    """What a detector's graph must have and `graph` has not."""
    present = {node.op_type for node in graph.node if node.domain == DOMAIN}
    return [name for name in DECODING if name not in present]
