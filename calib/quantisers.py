"""Where quantisers (a QuantizeLinear and the DequantizeLinear behind it) stand on activations.

TensorRT fuses a layer to INT8 when its data comes through a quantiser, and a residual sum into the convolution before
it when the other branch does. ONNX Runtime on a CPU wants more: a layer's result must go through a quantiser too, and
so must both inputs and the result of a sum, or the layer stays FP32.
Ref: TensorRT developer guide, "Q/DQ layer-placement recommendations"; ONNX Runtime, core/optimizer/qdq_transformer.

Shapes: none; a read is (index of a node, position of its input).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from onnx import GraphProto

from calib.dense_part import producers

SAME_VALUES = ("MaxPool", "Resize")  # nearest: what comes out went in, so that it passes in INT8 (Resize, MaxPool)
FLAVOURS = ("tensorrt", "cpu")
Read = tuple[int, int]


@dataclass
class Quantisers:
    """Values that get one quantiser each, and the reads that go through it.

    alike: values that take the range of another, because MaxPool and Resize only pass numbers on.
    """

    reads: dict[str, set[Read]] = field(default_factory=dict)
    alike: dict[str, str] = field(default_factory=dict)

    def add(self, value: str, reads: Iterable[Read]) -> None:
        """Let `reads` of `value` go through its quantiser."""
        self.reads.setdefault(value, set()).update(reads)

    def range_of(self, value: str) -> str:
        """The value whose range `value` has."""
        while value in self.alike:
            value = self.alike[value]
        return value

    @property
    def measured(self) -> list[str]:
        """Values whose ranges are needed."""
        return list(dict.fromkeys(self.range_of(value) for value in self.reads))


def place_quantisers(graph: GraphProto, layers: Collection[int], flavour: str) -> Quantisers:
    """Quantisers for `layers`, indices of Conv and Gemm nodes, of the dense part of `graph`.

    Args:
        flavour: "tensorrt" or "cpu".
    """
    flow = _Flow(graph)
    placed = Quantisers()
    for index in layers:
        placed.add(graph.node[index].input[0], [(index, 0)])
    if flavour == "cpu":
        _place_for_cpu(flow, set(layers), placed)
    else:
        _place_on_skips(flow, set(layers), placed)
    return placed


class _Flow:
    """Who makes and who reads each value of a graph."""

    def __init__(self, graph: GraphProto) -> None:
        self.nodes = list(graph.node)
        self.maker = producers(graph)
        self.constants = {item.name for item in graph.initializer}
        self.readers: dict[str, list[Read]] = {}
        for index, node in enumerate(self.nodes):
            for slot, name in enumerate(node.input):
                self.readers.setdefault(name, []).append((index, slot))

    def is_standard(self, index: int, *op_types: str) -> bool:
        node = self.nodes[index]
        return node.domain == "" and node.op_type in op_types

    def made_by(self, value: str, *op_types: str) -> int | None:
        """The node of one of `op_types` that makes `value`."""
        index = self.maker.get(value)
        return index if index is not None and self.is_standard(index, *op_types) else None

    def behind_relu(self, value: str) -> str:
        """`value`, or what a Relu makes of it if nothing else reads it."""
        readers = self.readers.get(value, [])
        if len(readers) == 1 and self.is_standard(readers[0][0], "Relu"):
            return self.nodes[readers[0][0]].output[0]
        return value

    def sums(self) -> list[int]:
        """Adds of two values that are no constants."""
        return [
            index
            for index, node in enumerate(self.nodes)
            if self.is_standard(index, "Add") and self.constants.isdisjoint(node.input)
        ]


def _place_on_skips(flow: _Flow, layers: set[int], placed: Quantisers) -> None:
    """The branch of each sum that does not end in the convolution which the sum is fused into.

    Where both end in one, that is the later. A Resize or MaxPool on the branch runs in INT8 when the quantiser stands
    before it.
    """
    for index in flow.sums():
        node = flow.nodes[index]
        makers = {flow.made_by(name, "Conv"): slot for slot, name in enumerate(node.input)}
        able = [maker for maker in makers if maker in layers and len(flow.readers[flow.nodes[maker].output[0]]) == 1]
        if not able:
            continue
        read = (index, 1 - makers[max(able)])  # type: ignore[type-var]
        value = node.input[read[1]]
        while (passing := flow.made_by(value, *SAME_VALUES)) is not None and len(flow.readers[value]) == 1:
            read, value = (passing, 0), flow.nodes[passing].input[0]
        placed.add(value, [read])


def _place_for_cpu(flow: _Flow, layers: set[int], placed: Quantisers) -> None:
    """Results of convolutions, of sums of quantised values, and of what passes quantised values on.

    Everybody reads such a result through the quantiser: a second reader of the FP32 result would keep the layer FP32.
    """
    for index, node in enumerate(flow.nodes):
        result = flow.behind_relu(node.output[0])
        quantised = [name in placed.reads for name in node.input]
        if index in layers and node.op_type == "Conv":
            placed.add(result, flow.readers.get(result, []))
        elif flow.is_standard(index, "Add") and all(quantised):
            for slot, name in enumerate(node.input):
                placed.add(name, [(index, slot)])
            placed.add(result, flow.readers.get(result, []))
        elif flow.is_standard(index, *SAME_VALUES) and quantised[0]:
            placed.add(node.input[0], [(index, 0)])
            placed.add(node.output[0], flow.readers.get(node.output[0], []))
            placed.alike[node.output[0]] = node.input[0]
