"""Finds the step at which a suspect departs from its reference.

Each of the suspect's steps is run on the reference's values of its inputs, in the order of data flow, so that an error
counts where it is made and not where it shows. Nothing is guessed from how errors grow, because they also shrink: a
bisection can miss the first fault. It is no slower: many steps go into one session, whose inputs are the reference's
values, and together these sessions compute the network once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from export.cut_graph import Arrays, Graph, Pair, Step
from export.cut_run import relative_error
from runtime.backends.onnxruntime_sessions import load_onnxruntime, session_options
from runtime.errors import RunError, first_line

CHUNK_BYTES = 128 << 20  # of one file's values that are held at a time, besides those that later steps read
UNKNOWN_BYTES = 16 << 20  # counted for a value whose shape the file does not state
Advance = Callable[[int], object]


@dataclass(frozen=True)
class Measured:
    """Errors (relative RMS) of one step: on the reference's inputs, and as the suspect alone has it (None: no rows to
    compare, because small errors give other rows)."""

    step: Step
    alone: float
    carried: float | None


@dataclass(frozen=True)
class Search:
    """What was measured, in order, and the positions of the steps that show the divergence; () where there is none."""

    measured: tuple[Measured, ...]
    found: tuple[int, ...]

    @property
    def departs_alone(self) -> bool:
        return len(self.found) == 1


def search(pair: Pair, feeds: Arrays, tolerance: float, advance: Advance = lambda count: None) -> Search:
    """The first step that departs on the reference's inputs; else the shortest range of steps whose errors add up.

    Args:
        feeds: images and im_info.
        tolerance: largest relative RMS error that is none.
        advance: is told how many steps were measured.

    Raises:
        RunError: ONNX Runtime cannot run one of the files.
    """
    measured: list[Measured] = []
    for item in measure_steps(pair, feeds):
        measured.append(item)
        advance(1)
        if item.alone > tolerance:
            return Search(tuple(measured), (len(measured) - 1,))
    beyond = [position for position, item in enumerate(measured) if item.carried and item.carried > tolerance]
    found = shortest_range(pair, feeds, beyond[0], tolerance) if beyond else ()
    return Search(tuple(measured), tuple(found))


def measure_steps(pair: Pair, feeds: Arrays, chunk_bytes: int = CHUNK_BYTES) -> Iterator[Measured]:
    """Measure step after step, a chunk at a time.

    Behind a step that selects rows the suspect goes on with the reference's rows, or nothing could be compared there.
    """
    assert pair.reference is not None
    known, carried = dict(feeds), dict(feeds)  # values of the reference and of the suspect that are still read
    chunks = list(_chunks(pair, chunk_bytes))
    last_read = {
        name: number
        for number, chunk in enumerate(chunks)
        for step in chunk
        for name in (*step.reads, *step.reference_reads)
    }
    for number, chunk in enumerate(chunks):
        names = [name for step in chunk for name in step.outputs]
        known.update(compute(pair.reference, names, known))
        carried.update(compute(pair.suspect, names, carried))
        alone = compute(pair.suspect, names, cast_like(known, carried))
        for step in chunk:
            yield Measured(
                step,
                worst_error(step.outputs, known, alone),
                None if step.selects else worst_error(step.outputs, known, carried),
            )
        if chunk[-1].selects:
            carried.update(cast_like({name: known[name] for name in chunk[-1].outputs}, carried))
        for values in (known, carried):
            for name in [name for name in values if last_read.get(name, -1) <= number and name not in feeds]:
                del values[name]


def shortest_range(pair: Pair, feeds: Arrays, end: int, tolerance: float) -> list[int]:
    """Positions of consecutive steps, the last one `end`, that depart together; without the first they do not.

    The range is doubled from its end until it departs, then its front is found by bisection.

    Raises:
        RunError: not even all the steps before `end` depart.
    """
    candidates = pair.ancestors(end, past_selection=False)

    def departs(count: int) -> bool:
        chosen = candidates[-count:]
        return worst_error(pair.steps[end].outputs, *run_range(pair, feeds, chosen)) > tolerance

    too_short, long_enough = 1, 2
    while not departs(min(long_enough, len(candidates))):
        if long_enough >= len(candidates):
            name = pair.steps[end].outputs[0]
            raise RunError(
                f"the error of {name!r} is so close to the tolerance that it cannot be cut out: give another."
            )
        too_short, long_enough = long_enough, 2 * long_enough
    long_enough = min(long_enough, len(candidates))
    while long_enough - too_short > 1:
        middle = (too_short + long_enough) // 2
        too_short, long_enough = (too_short, middle) if departs(middle) else (middle, long_enough)
    return candidates[-long_enough:]


def run_range(pair: Pair, feeds: Arrays, chosen: Sequence[int]) -> tuple[Arrays, Arrays]:
    """What the last of the `chosen` steps gives in the reference, and in the suspect on the reference's values."""
    assert pair.reference is not None
    outputs = pair.steps[chosen[-1]].outputs
    reads = pair.suspect.between(outputs, pair.boundary(chosen))[1]
    own = compute(pair.suspect, reads, feeds)
    known = compute(pair.reference, [*reads, *outputs], feeds)
    given = cast_like({name: known[name] for name in reads}, own)
    return known, compute(pair.suspect, outputs, given)


def compute(graph: Graph, names: Sequence[str], given: Arrays) -> dict[str, np.ndarray]:
    """The values `names` of `graph`, from those `given`; inputs of the graph are passed on.

    Raises:
        RunError: ONNX Runtime cannot load or run the part.
    """
    passed = {name: given[name] for name in names if name in graph.inputs}
    wanted = [name for name in names if name not in passed]
    if not wanted:
        return passed
    return {**passed, **dict(zip(wanted, run_model(graph.part(wanted, given), given, graph.whose)))}


def run_model(model: ModelProto, given: Arrays, whose: str) -> list[np.ndarray]:
    """The outputs of `model`, a part of the file `whose`, on the CPU, as ONNX Runtime optimises it by default.

    Raises:
        RunError: ONNX Runtime cannot load or run it.
    """
    ort = load_onnxruntime()
    feeds = {value.name: given[value.name] for value in model.graph.input}
    try:
        session = ort.InferenceSession(
            model.SerializeToString(), sess_options=session_options(ort, None), providers=["CPUExecutionProvider"]
        )
        return session.run(None, feeds)
    except Exception as error:  # its exceptions have no common base
        raise RunError(f"ONNX Runtime {ort.__version__} cannot run {whose}: {first_line(error)}") from error


def worst_error(names: Sequence[str], expected: Arrays, found: Arrays) -> float:
    """The largest relative error of the values `names`."""
    return max(relative_error(expected[name], found[name]) for name in names)


def cast_like(values: Arrays, typed: Arrays) -> dict[str, np.ndarray]:
    """`values` in the types that `typed` has under their names; those it has not are left out."""
    with np.errstate(over="ignore"):  # what float16 cannot hold becomes infinite, as it does in the suspect
        return {name: array.astype(typed[name].dtype) for name, array in values.items() if name in typed}


def _chunks(pair: Pair, chunk_bytes: int) -> Iterator[list[Step]]:
    """The steps, in order, in groups whose values take so many bytes; a selecting step ends its group."""
    sizes = _value_bytes(pair.suspect)
    chunk: list[Step] = []
    total = 0
    for step in pair.steps:
        chunk.append(step)
        total += sum(sizes.get(name, UNKNOWN_BYTES) for name in step.outputs)
        if total >= chunk_bytes or step.selects:
            yield chunk
            chunk, total = [], 0
    if chunk:
        yield chunk


def _value_bytes(graph: Graph) -> dict[str, int]:
    """Bytes, at four per element and one picture, of the values whose shapes the file states."""
    stated = [*graph.model.graph.value_info, *graph.model.graph.output]
    return {
        value.name: 4 * math.prod(side.dim_value or 1 for side in value.type.tensor_type.shape.dim) for value in stated
    }
