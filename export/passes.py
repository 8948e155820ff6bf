"""Passes over the exported ONNX graph: small, matched by op type and domain, each returning how many things it changed.

All of them work in place on a ModelProto whose values have shapes (`graph.value_info`), as torch.onnx writes it.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

SCOPES = "pkg.torch.onnx.name_scopes"  # torch.onnx's own note on a node: the modules it came from

# names of our ops' results, in the place of the module-less names that torch.onnx gives
OUR_NODES: dict[str, tuple[str, tuple[str, ...]]] = {
    "RpnProposals": ("rpn/RpnProposals", ("rpn/rois", "rpn/num_rois")),
    "PyramidRoiAlign": ("roi_heads/PyramidRoiAlign", ("roi_heads/pooled",)),
    "RoiMaxPool": ("roi_heads/RoiMaxPool", ("roi_heads/pooled",)),
    "BoxDetections": ("roi_heads/BoxDetections", ()),
}


def clean_graph(model: ModelProto) -> dict[str, int]:
    """Every pass, in order; the number of changes of each."""
    changes = {
        "resizes made static": make_resizes_static(model),
        "dead nodes removed": remove_dead_nodes(model),
        "nodes named": name_nodes(model),
        "values named": name_values(model),
        "notes removed": remove_exporter_notes(model),
        "attributes removed": remove_default_attributes(model),
        "constants merged": merge_equal_initializers(model),
    }
    remove_unused_values(model)
    return changes


def make_resizes_static(model: ModelProto) -> int:
    """Nearest Resizes get constant scales; those that change nothing go.

    torch.onnx computes `sizes` from Shape of the input, since the batch is dynamic. Scales need no batch.
    """
    graph = model.graph
    shapes = _shapes(graph)
    resizes = [node for node in graph.node if (node.domain, node.op_type) == ("", "Resize")]
    for node in resizes:
        scales = np.array([1, 1, *_spatial_scales(shapes[node.input[0]], shapes[node.output[0]])], np.float32)
        if np.all(scales == 1):
            _replace_value(graph, node.output[0], node.input[0])
            graph.node.remove(node)
            continue
        name = f"{node.output[0]}_scales"
        graph.initializer.append(numpy_helper.from_array(scales, name))
        source = node.input[0]
        del node.input[:]
        node.input.extend([source, "", name])
    return len(resizes)


def _spatial_scales(source: list[int], target: list[int]) -> tuple[float, float]:
    (source_h, source_w), (target_h, target_w) = source[2:], target[2:]
    whole = min(source_h, source_w, target_h, target_w) > 0 and target_h % source_h == 0 and target_w % source_w == 0
    assert whole, f"a Resize from {source_h}x{source_w} to {target_h}x{target_w}: the canvas is no multiple of strides"
    return target_h / source_h, target_w / source_w


def remove_dead_nodes(model: ModelProto) -> int:
    """Nodes that no output depends on go, last first."""
    graph = model.graph
    needed = {value.name for value in graph.output}
    dead = []
    for node in reversed(graph.node):
        if needed.isdisjoint(node.output):
            dead.append(node)
        else:
            needed.update(node.input)
    for node in dead:
        graph.node.remove(node)
    return len(dead)


def name_nodes(model: ModelProto) -> int:
    """`backbone/body/1/block/0/0/Conv`: the module's path in the checkpoint, then the op type, made unique.

    A node without scopes (torch.onnx makes some when it fuses) takes those of the node before it in the data flow.
    """
    graph = model.graph
    producers: dict[str, str] = {}  # value -> module of its producer
    used: Counter[str] = Counter()
    for node in graph.node:
        module = _module(node)
        if module is None:
            module = next((producers[name] for name in node.input if name in producers), "")
        producers.update(dict.fromkeys(node.output, module))
        wanted, _ = OUR_NODES.get(node.op_type, (None, ())) if node.domain else (None, ())
        name = wanted or "/".join(filter(None, [module.replace(".", "/"), node.op_type]))
        node.name = f"{name}_{used[name]}" if used[name] else name
        used[name] += 1
    return len(graph.node)


def _module(node: NodeProto) -> str | None:
    """`backbone.body.1.block.0.0`, or None when the node does not say."""
    for prop in node.metadata_props:
        if prop.key == SCOPES:
            return str(ast.literal_eval(prop.value)[-2])
    return None


def name_values(model: ModelProto) -> int:
    """Every value is called as the node that makes it, every constant as its first reader; weights keep their names."""
    graph = model.graph
    fixed = {value.name for value in [*graph.input, *graph.output]}
    new_names: dict[str, str] = {}
    for node in graph.node:
        _, ours = OUR_NODES.get(node.op_type, ("", ())) if node.domain else ("", ())
        for index, name in enumerate(node.output):
            default = node.name if len(node.output) == 1 else f"{node.name}:{index}"
            new_names[name] = ours[index] if index < len(ours) else default
    readers: dict[str, str] = {}
    for node in graph.node:
        for index, name in enumerate(node.input):
            readers.setdefault(name, f"{node.name}:input{index}")
    for initializer in graph.initializer:
        if "." not in initializer.name and initializer.name in readers:
            new_names[initializer.name] = readers[initializer.name]
    new_names = {old: new for old, new in new_names.items() if old not in fixed and old != new}
    taken = list(new_names.values())
    assert len(set(taken)) == len(taken), "two values of one name"
    _rename_values(graph, new_names)
    return len(new_names)


def remove_exporter_notes(model: ModelProto) -> int:
    """Stack traces, module classes and doc strings: they hold paths of the exporting machine."""
    graph = model.graph
    removed = 0
    for item in [model, graph, *graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output]:
        removed += len(item.metadata_props) + bool(item.doc_string)
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    return removed


def remove_default_attributes(model: ModelProto) -> int:
    """Attributes that say what their absence says go; the others are sorted, so that the file is always the same."""
    version = next(entry.version for entry in model.opset_import if entry.domain == "")
    constants = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer if item.dims == [2]}
    removed = 0
    for node in model.graph.node:
        kept = [attribute for attribute in node.attribute if not _is_default(node, attribute, version)]
        if node.op_type == "Reshape" and constants[node.input[1]].all():  # no zero in the shape that could be allowed
            kept = [attribute for attribute in kept if attribute.name != "allowzero"]
        removed += len(node.attribute) - len(kept)
        kept.sort(key=lambda attribute: attribute.name)
        del node.attribute[:]
        node.attribute.extend(kept)
    return removed


def _is_default(node: NodeProto, attribute: onnx.AttributeProto, version: int) -> bool:
    if node.domain:
        return False
    default = onnx.defs.get_schema(node.op_type, version).attributes[attribute.name].default_value
    value = helper.get_attribute_value(attribute)
    if default.type != onnx.AttributeProto.UNDEFINED:
        return value == helper.get_attribute_value(default)
    if attribute.name not in ("dilations", "strides", "pads"):
        return False
    return (attribute.name, *set(value)) in {("dilations", 1), ("strides", 1), ("pads", 0)}


def merge_equal_initializers(model: ModelProto) -> int:
    """One of several initialisers with the same content stays."""
    graph = model.graph
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    renamed: dict[str, str] = {}
    kept = []
    for initializer in graph.initializer:
        key = (initializer.data_type, tuple(initializer.dims), numpy_helper.to_array(initializer).tobytes())
        if key in first:
            renamed[initializer.name] = first[key]
        else:
            first[key] = initializer.name
            kept.append(initializer)
    _keep(graph.initializer, kept)
    _rename_values(graph, renamed)
    return len(renamed)


def remove_unused_values(model: ModelProto) -> int:
    """Initialisers that nobody reads and shapes of values that are no more; weights need no shape of their own."""
    graph = model.graph
    read = {name for node in graph.node for name in node.input}
    made = {name for node in graph.node for name in node.output} - {value.name for value in graph.output}
    before = len(graph.initializer) + len(graph.value_info)
    _keep(graph.initializer, [item for item in graph.initializer if item.name in read])
    _keep(
        graph.value_info, sorted((item for item in graph.value_info if item.name in made), key=lambda item: item.name)
    )
    return before - len(graph.initializer) - len(graph.value_info)


def _keep(field: object, kept: list) -> None:
    copies = [type(item).FromString(item.SerializeToString()) for item in kept]
    del field[:]  # type: ignore[attr-defined]
    field.extend(copies)  # type: ignore[attr-defined]


def _shapes(graph: GraphProto) -> dict[str, list[int]]:
    """Shape of each value; 0 where it is dynamic."""
    values = [*graph.value_info, *graph.input, *graph.output]
    return {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values}


def _replace_value(graph: GraphProto, old: str, new: str) -> None:
    """Readers of `old` read `new`."""
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new


def _rename_values(graph: GraphProto, new_names: dict[str, str]) -> None:
    def renamed(names: Iterable[str]) -> list[str]:
        return [new_names.get(name, name) for name in names]

    for node in graph.node:
        inputs, outputs = renamed(node.input), renamed(node.output)
        del node.input[:], node.output[:]
        node.input.extend(inputs)
        node.output.extend(outputs)
    for item in [*graph.value_info, *graph.initializer]:
        item.name = new_names.get(item.name, item.name)
