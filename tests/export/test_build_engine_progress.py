"""TensorRT's phases as one fraction: nested, from several threads, never backwards."""

from __future__ import annotations

import io
import pickle
import sys
import threading

import pytest

from export import engine_progress
from export.engine_progress import PhaseTree, build_bar
from export.engine_worker import Messages


def test_a_phase_is_its_steps_and_its_childrens_share_of_one():
    tree = PhaseTree()
    assert tree.start("all", None, 4) == 0.0
    assert tree.step("all", 0) == 0.25
    tree.start("part", "all", 2)
    assert tree.step("part", 0) == 0.375
    tree.start("detail", "part", 2)
    assert tree.step("detail", 0) == 0.4375
    tree.finish("detail")
    assert tree.finish("part") == 0.5
    assert tree.step("all", 1) == 0.5
    assert tree.finish("all") == 1.0


def test_it_never_goes_back_and_takes_what_makes_no_sense():
    tree = PhaseTree()
    tree.start("all", None, 2)
    tree.start("part", "all", 10)
    assert tree.step("part", 7) == 0.4
    tree.start("part", "all", 10)  # again, under the same name
    assert tree.step("part", 0) == 0.4
    assert tree.step("unheard of", 3) == 0.4
    assert tree.finish("unheard of") == 0.4
    tree.start("ring", "ring", 3)
    tree.start("more", "all", 0)  # no steps
    assert tree.step("more", 5) == 0.5
    assert tree.step("all", 9) == 1.0


def test_threads_that_work_side_by_side_end_at_one():
    tree, fractions = PhaseTree(), []
    tree.start("all", None, 4)

    def work(name: str) -> None:
        tree.start(name, "all", 50)
        fractions.extend(tree.step(name, step) for step in range(50))
        fractions.append(tree.finish(name))
        fractions.append(tree.step("all", int(name)))

    threads = [threading.Thread(target=work, args=(str(index),)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tree.finish("all") == 1.0
    assert all(0.0 <= fraction <= 1.0 for fraction in fractions)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("is_terminal", [True, False])
def test_the_bar_names_the_phase_on_a_terminal_and_is_silent_elsewhere(is_terminal, monkeypatch):
    stream = Terminal() if is_terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with build_bar() as show:
        show(0.25, "Timing tactics")
        show(1.0, "Building engine")
    assert ("100%" in stream.getvalue()) == ("Building engine" in stream.getvalue()) == is_terminal


def test_without_tqdm_the_build_goes_on(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with engine_progress.build_bar() as show:
        show(0.5, "Optimizing graph")


def test_messages_are_sent_for_progress_that_can_be_seen_and_survive_a_reader_that_left():
    stream = io.BytesIO()
    messages = Messages(stream)
    for fraction, phase in [(0.1, "a"), (0.101, "a"), (0.102, "b"), (0.2, "b")]:
        messages.show(fraction, phase)
    stream.seek(0)
    sent = [pickle.load(stream) for _ in range(3)]
    assert sent == [("show", 0.1, "a"), ("show", 0.102, "b"), ("show", 0.2, "b")]
    assert stream.read() == b""

    class Gone(io.RawIOBase):
        def write(self, data: object) -> int:
            raise BrokenPipeError

    Messages(Gone()).say("nobody hears this")  # type: ignore[arg-type]
