"""TensorRT's build progress as one bar: nested phases, told by several threads, become one fraction that only grows.

The bar counts TensorRT's steps, which take very different times, so it shows the time gone by and forecasts none.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

Show = Callable[[float, str], None]  # fraction done, name of the phase


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class PhaseTree:
    """Phases that are going on. A phase is as far as its finished steps and its children's shares of a step."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._phases: dict[str, _Phase] = {}
        self._root: str | None = None
        self._fraction = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> float:
        """A phase began; returns the fraction of the whole build that is done."""
        with self._lock:
            self._root = self._root or name
            self._phases[name] = _Phase(parent, max(steps, 1))
            return self._fraction

    def step(self, name: str, index: int) -> float:
        """Step `index` of a phase is complete; the fraction."""
        with self._lock:
            phase = self._phases.get(name)
            if phase is not None:
                phase.done = min(max(phase.done, index + 1), phase.steps)
            return self._updated()

    def finish(self, name: str) -> float:
        """A phase ended; the fraction."""
        with self._lock:
            phase = self._phases.get(name)
            if phase is not None:
                phase.done = phase.steps
            fraction = self._updated()
            self._phases.pop(name, None)
            return fraction

    def _updated(self) -> float:
        if self._root in self._phases:
            self._fraction = max(self._fraction, self._share(self._root, depth=0))
        return self._fraction

    def _share(self, name: str, depth: int) -> float:
        phase = self._phases[name]
        if depth > len(self._phases):  # a phase that is its own ancestor
            return 0.0
        children = [child for child, other in self._phases.items() if other.parent == name and child != name]
        running = sum(self._share(child, depth + 1) for child in children)
        return min(1.0, (phase.done + min(1.0, running)) / phase.steps)


@contextlib.contextmanager
def build_bar() -> Iterator[Show]:
    """A bar on stderr, where that is a terminal and tqdm is installed; it leaves no trace."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda fraction, phase: None
        return
    layout = "build    {percentage:3.0f}% |{bar}| {elapsed}{postfix}"
    with tqdm(total=1.0, bar_format=layout, leave=False, disable=None) as bar:

        def show(fraction: float, phase: str) -> None:
            bar.n = fraction
            bar.set_postfix_str(phase)  # draws it, too: tqdm would leave out what comes before a long phase

        yield show
