"""The part that was found, as models that run on their own, with what goes in and what should come out."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import ModelProto

from export.cut_graph import Arrays, Graph, Pair, value_info
from export.cut_search import cast_like, compute, run_model, worst_error
from runtime.errors import RunError, UserError


@dataclass(frozen=True)
class Cut:
    """A part of the suspect, the reference's part for the same values, and both their results.

    inputs: of both, in the reference's types. expected: the reference's results, or without one the suspect's own.
    """

    suspect: ModelProto
    reference: ModelProto | None
    inputs: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]
    found: dict[str, np.ndarray]  # the suspect's results, alone
    error: float  # relative RMS of the suspect's part, alone

    @property
    def custom_ops(self) -> list[str]:
        """Names of the operators of the suspect's part that are not ONNX's own."""
        return sorted({f"{node.domain}.{node.op_type}" for node in self.suspect.graph.node if node.domain})


def make_cut(pair: Pair, feeds: Arrays, chosen: Sequence[int]) -> Cut:
    """Cut out the steps at positions `chosen`, ascending, with the outputs of the last of them.

    The inputs are the reference's values; without a reference, those that the suspect has for `feeds`.

    Raises:
        RunError: ONNX Runtime cannot run it, or ONNX's checker refuses it.
    """
    outputs, boundary = pair.steps[chosen[-1]].outputs, pair.boundary(chosen)
    reads = pair.suspect.between(outputs, boundary)[1]
    own = compute(pair.suspect, reads, feeds)
    if pair.reference is None:
        suspect, found = _checked(pair.suspect, outputs, own)
        return Cut(suspect, None, own, found, found, 0.0)
    all_reads = {*reads, *pair.reference.between(outputs, boundary)[1]}
    known = compute(pair.reference, sorted(all_reads), feeds)
    given = cast_like(known, own)
    reference, expected = _checked(pair.reference, outputs, known)
    suspect, found = _checked(pair.suspect, outputs, given)
    return Cut(suspect, reference, known, expected, found, worst_error(outputs, expected, found))


def positions_of_range(pair: Pair, value: str, first: str | None) -> list[int]:
    """The steps from the one that makes `first` to the one that makes `value`, of those that `value` depends on.

    Without `first`, the step that makes `value` alone.

    Raises:
        UserError: a value that is none, or `value` does not depend on `first`.
    """
    end = _position(pair, value, "--value")
    if first is None:
        return [end]
    start = _position(pair, first, "--from")
    ancestors = pair.ancestors(end, past_selection=True)
    if start not in ancestors:
        raise UserError(f"--from is {first!r}, on which {value!r} does not depend: name a value that it is made from.")
    return [position for position in ancestors if position >= start]


def _position(pair: Pair, name: str, option: str) -> int:
    if name in pair.position:
        return pair.position[name]
    whose = "the suspect makes" if pair.reference is None else "both files make"
    nearest = difflib.get_close_matches(name, pair.position, n=1, cutoff=0.0)[0]
    raise UserError(f"{option} is {name!r}, which is no value that {whose}: the nearest is {nearest!r}.")


def _checked(graph: Graph, outputs: Sequence[str], given: Arrays) -> tuple[ModelProto, dict[str, np.ndarray]]:
    """The part of `graph` that makes `outputs`, valid for ONNX's checker and TensorRT, and what it gives."""
    model = graph.part(outputs, given)
    found = dict(zip(outputs, run_model(model, given, graph.whose)))
    del model.graph.output[:]
    model.graph.output.extend(value_info(name, array) for name, array in found.items())
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise RunError(f"the part of {graph.whose} that makes {outputs[0]!r} is not valid ONNX: {error}") from error
    return model, found
