"""What `export/cut.py` says in words: on the terminal, and in the report that goes with the bug."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from export.cut_graph import Pair
from export.cut_inputs import Artifact
from export.cut_parts import Cut
from export.cut_run import relative_error
from export.cut_search import Measured, Search
from runtime.backends.onnxruntime_sessions import load_onnxruntime
from runtime.tables import format_table

TITLE = "EdgeRCNN: part of a detector's graph, cut out for a bug report"  # the first line, by which a folder is ours
LONGEST = 100  # characters of an attribute that are shown
LAST_STEPS = 8  # of the search, that are shown


@dataclass(frozen=True)
class Account:
    """Where a cut comes from."""

    reference: Artifact | None
    suspect: Artifact
    pair: Pair
    chosen: tuple[int, ...]  # positions of its steps
    tolerance: float
    image: Path | None  # None: the conveyor scene
    search: Search | None  # None: the user named the value


def describe_search(search: Search, tolerance: float) -> str:
    """What was found, in one line or two."""
    worst = max(search.measured, key=lambda item: item.alone)
    if not search.found:
        carried = [item for item in search.measured if item.carried is not None]
        most = max(carried, key=lambda item: item.carried or 0.0, default=None)
        added = f", and errors add up to {most.carried:.3g} at most ({most.step.outputs[0]})" if most else ""
        return (
            f"no step departs: of {len(search.measured)} steps the worst is off by {worst.alone:.3g} "
            f"({worst.step.outputs[0]}){added}; the tolerance is {tolerance:g}. Nothing is written."
        )
    name = search.measured[search.found[-1]].step.outputs[0]
    if search.departs_alone:
        return (
            f"found      step {len(search.measured)}: {name} departs by {worst.alone:.3g} on the reference's inputs "
            f"(tolerance {tolerance:g})"
        )
    first = search.measured[search.found[0]].step.outputs[0]
    return (
        f"found      no step departs alone (the worst by {worst.alone:.3g}), but the errors of {len(search.found)} "
        f"steps from {first} to {name} add up to more than {tolerance:g}"
    )


def size_line(cut: Cut, account: Account) -> str:
    """How small the part became, in numbers."""
    nodes, of_nodes = len(cut.suspect.graph.node), len(account.suspect.model.graph.node)
    size, of_size = cut.suspect.ByteSize(), account.suspect.model.ByteSize()
    return f"{nodes} of {of_nodes} nodes, {size:,} of {of_size:,} bytes"


def report_text(cut: Cut, account: Account) -> str:
    """The whole report."""
    sections = {
        "": [TITLE],
        "What": _what(cut, account),
        "Files": list(_files(account)),
        "Size": [size_line(cut, account)],
        "Errors of the suspect's part, alone": _errors(cut) if cut.reference else [],
        "The suspect's part": list(_nodes(cut.suspect, cut)),
        "The reference's part": list(_nodes(cut.reference, cut)) if cut.reference else [],
        "What differs between the two": list(_differences(cut)) if cut.reference else [],
        "The search, its last steps": _search_table(account.search.measured) if account.search else [],
        "How to run it": _how_to_run(cut),
        "Made with": [
            f"onnx {onnx.__version__}, onnxruntime {load_onnxruntime().__version__}, numpy {np.__version__}, Python "
            f"{platform.python_version()}, {platform.system()} {platform.machine()}"
        ],
    }
    blocks = ["\n".join([title, "-" * len(title)] * bool(title) + lines) for title, lines in sections.items() if lines]
    return "\n\n".join(blocks) + "\n"


def _what(cut: Cut, account: Account) -> list[str]:
    last = account.pair.steps[account.chosen[-1]]
    node = account.pair.suspect.nodes[last.node]
    if account.reference is None:
        return [f"The suspect's nodes that make {', '.join(last.outputs)}, with their inputs and results there."]
    names = f"{', '.join(last.outputs)}, made by node {node.name!r} ({_op(node)})"
    verdict = "beyond" if cut.error > account.tolerance else "within"
    lines = [
        f"On the reference's inputs, the suspect's part gives {names}, with a relative RMS error of {cut.error:.4g}: "
        f"{verdict} the tolerance of {account.tolerance:g}."
    ]
    if account.search and account.search.departs_alone:
        lines.append(f"All {account.chosen[-1]} steps before it keep the tolerance on the reference's inputs.")
    elif account.search:
        lines.append(f"No step departs alone; the errors of {len(account.chosen)} consecutive steps add up to this.")
    return lines


def _files(account: Account) -> Iterator[str]:
    for role, artifact in (("reference", account.reference), ("suspect", account.suspect)):
        if artifact is not None:
            yield f"{role:9s}  {artifact.path}, {artifact.precision}, {artifact.spec.architecture}"
            yield f"           SHA-256 {artifact.sha256}"
            yield f"           spec    {artifact.spec.digest()}"
    yield f"picture    {account.image or 'a conveyor scene of EdgeRCNN'}"


def _errors(cut: Cut) -> list[str]:
    header = ("output", "relative RMS", "RMS of expected", "max |difference|", "max |expected|")
    rows = []
    for name, expected in cut.expected.items():
        a, b = expected.astype(np.float64), cut.found[name].astype(np.float64)
        with np.errstate(all="ignore"):
            difference = np.abs(a - b).max(initial=0.0) if a.shape == b.shape else float("nan")
            numbers = (relative_error(a, b), np.sqrt(np.mean(a**2)), difference, np.abs(a).max(initial=0.0))
        rows.append((name, *(f"{number:.5g}" for number in numbers)))
    return format_table(header, rows).splitlines()


def _nodes(model: ModelProto, cut: Cut) -> Iterator[str]:
    constants = {item.name: item for item in model.graph.initializer}
    typed = {value.name: value for value in [*model.graph.input, *model.graph.output]}
    for node in model.graph.node:
        yield f"{node.name or '(no name)'}: {_op(node)}"
        for attribute in node.attribute:
            yield f"    {attribute.name} = {_attribute_text(attribute)}"
        for verb, names in (("reads", node.input), ("makes", node.output)):
            for name in filter(None, names):
                kind = _type_text(name, typed, constants)
                yield f"    {verb} {name}{f', {kind}' if kind else ''}"
    if custom := [f"{function.domain}.{function.name}" for function in model.functions]:
        yield f"with the bodies of {', '.join(custom)}"


def _type_text(name: str, typed: dict[str, onnx.ValueInfoProto], constants: dict[str, TensorProto]) -> str:
    if name in constants:
        item = constants[name]
        return f"constant {helper.tensor_dtype_to_np_dtype(item.data_type)} {list(item.dims)}"
    if name in typed:
        tensor = typed[name].type.tensor_type
        sides = [side.dim_value for side in tensor.shape.dim]
        return f"{helper.tensor_dtype_to_np_dtype(tensor.elem_type)} {sides}"
    return ""


def _differences(cut: Cut) -> Iterator[str]:
    """Of nodes and constants that have the same name in both parts, and of those that only one has."""
    assert cut.reference is not None
    parts = [{node.name: node for node in model.graph.node} for model in (cut.reference, cut.suspect)]
    for name in dict.fromkeys([*parts[0], *parts[1]]):
        first, second = parts[0].get(name), parts[1].get(name)
        if first is None or second is None:
            yield f"{name}: only in the {'suspect' if first is None else 'reference'}"
        else:
            yield from (f"{name}: {text}" for text in _node_differences(first, second))
    weights = [{item.name: item for item in model.graph.initializer} for model in (cut.reference, cut.suspect)]
    for name in weights[0].keys() & weights[1].keys():
        a, b = (numpy_helper.to_array(item[name]) for item in weights)
        if a.dtype != b.dtype:
            yield f"constant {name}: {a.dtype} in the reference, {b.dtype} in the suspect"
        if (error := relative_error(a, b)) > 0:
            yield f"constant {name}: differs by {error:.3g} (relative RMS)"


def _node_differences(first: NodeProto, second: NodeProto) -> Iterator[str]:
    if _op(first) != _op(second):
        yield f"{_op(first)} in the reference, {_op(second)} in the suspect"
    if list(first.input) != list(second.input):
        yield f"reads {', '.join(first.input)} in the reference, {', '.join(second.input)} in the suspect"
    attributes = [{item.name: _attribute_text(item) for item in node.attribute} for node in (first, second)]
    for name in sorted(attributes[0].keys() | attributes[1].keys()):
        a, b = (item.get(name, "(not there)") for item in attributes)
        if a != b:
            yield f"{name} = {a} in the reference, {b} in the suspect"


def _search_table(measured: Sequence[Measured]) -> list[str]:
    rows = [
        (item.step.outputs[0], f"{item.alone:.3g}", None if item.carried is None else f"{item.carried:.3g}")
        for item in measured[-LAST_STEPS:]
    ]
    return format_table(("step", "error alone", "error carried along"), rows).splitlines()


def _how_to_run(cut: Cut) -> list[str]:
    lines = ["pip install numpy onnxruntime", "python run.py      exit code 1: the divergence is there; 0: it is not"]
    if not cut.custom_ops:
        lines.append("trtexec --onnx=suspect.onnx --stronglyTyped")
    return lines


def _op(node: NodeProto) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def _attribute_text(attribute: onnx.AttributeProto) -> str:
    value = helper.get_attribute_value(attribute)
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
