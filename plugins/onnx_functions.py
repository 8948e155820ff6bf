"""Give an ONNX model the bodies of its edgercnn nodes, so that any runtime of standard ONNX can run it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, helper

from plugins.box_detections import onnx_body as box_detections
from plugins.common.onnx_builder import DOMAIN, DOMAIN_VERSION
from plugins.pyramid_roi_align import onnx_body as pyramid_roi_align
from plugins.roi_max_pool import onnx_body as roi_max_pool
from plugins.rpn_proposals import onnx_body as rpn_proposals

LOWEST_OPSET = 18  # Split with num_outputs, Reduce* with axes as an input
UNKNOWN = (math.inf,) * 4  # shape of features that the model does not state
OP_TYPES = ("RpnProposals", "PyramidRoiAlign", "RoiMaxPool", "BoxDetections")


def append_bodies(model: ModelProto) -> ModelProto:
    """A copy of `model` with one FunctionProto for each op type of its edgercnn nodes; bodies it had are replaced.

    The body of PyramidRoiAlign is the one that is fast for the sizes of the features, where the model states them.

    Raises:
        ValueError: an op type or opset that has no body, or two nodes of one type that need different bodies: other
            numbers of inputs (a function has one list of inputs), or samples fixed here and adaptive there.
    """
    opset = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if opset < LOWEST_OPSET:
        raise ValueError(f"the model has opset {opset}, the bodies need {LOWEST_OPSET} or later: export it with that")
    nodes_of_type: dict[str, list[NodeProto]] = {}
    for node in _edgercnn_nodes(model.graph):
        _check(node)
        nodes_of_type.setdefault(node.op_type, []).append(node)
    shapes = _known_shapes(model.graph)
    bodies = [_body(op_type, nodes, shapes, opset) for op_type, nodes in nodes_of_type.items()]
    result = ModelProto()
    result.CopyFrom(model)
    del result.functions[:]
    result.functions.extend([function for function in model.functions if function.domain != DOMAIN] + bodies)
    if bodies and all(entry.domain != DOMAIN for entry in model.opset_import):
        result.opset_import.append(helper.make_opsetid(DOMAIN, DOMAIN_VERSION))
    return result


def _body(op_type: str, nodes: Sequence[NodeProto], shapes: Mapping[str, Sequence[float]], opset: int) -> FunctionProto:
    """The body that serves all `nodes` of one type."""
    counts = sorted({len(node.input) for node in nodes})
    if len(counts) > 1:
        raise ValueError(
            f"{op_type} nodes with {counts[0]} and with {counts[-1]} inputs: one model can hold one number of levels, "
            "export them as two models"
        )
    if op_type == "RpnProposals":
        return rpn_proposals.function_body((counts[0] - 1) // 2, opset)
    if op_type == "PyramidRoiAlign":
        cells = max(sum(math.prod(shapes.get(name, UNKNOWN)[2:]) for name in node.input[1:]) for node in nodes)
        if _is_adaptive(nodes):
            return pyramid_roi_align.adaptive_body(counts[0] - 1, opset)
        return pyramid_roi_align.function_body(counts[0] - 1, opset, cells <= pyramid_roi_align.MOST_DENSE_CELLS)
    return (roi_max_pool if op_type == "RoiMaxPool" else box_detections).function_body(opset)


def _is_adaptive(nodes: Sequence[NodeProto]) -> bool:
    """Whether PyramidRoiAlign takes as many samples as a roi has feature px in a bin."""
    ratios = [attribute.i for node in nodes for attribute in node.attribute if attribute.name == "sampling_ratio"]
    if len({ratio == 0 for ratio in ratios}) > 1:
        raise ValueError(
            f"PyramidRoiAlign nodes with sampling_ratio {sorted(set(ratios))}: one model can hold fixed numbers of "
            "samples or adaptive ones, export them as two models"
        )
    return 0 in ratios


def _known_shapes(graph: GraphProto) -> dict[str, list[float]]:
    """The shapes that `graph` states, by the value's name; infinity for a free axis."""
    shapes = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.type.tensor_type.HasField("shape"):
            dims = value.type.tensor_type.shape.dim
            shapes[value.name] = [dim.dim_value if dim.HasField("dim_value") else math.inf for dim in dims]
    return shapes


def _edgercnn_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """The nodes of our domain in `graph` and in the graphs inside its nodes."""
    for node in graph.node:
        if node.domain == DOMAIN:
            yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _edgercnn_nodes(attribute.g)


def _check(node: NodeProto) -> None:
    if node.op_type not in OP_TYPES:
        raise ValueError(f"node {node.name!r} has op type {DOMAIN}.{node.op_type}, there are {', '.join(OP_TYPES)}")
