"""Runs the self-test's steps, each as a process of its own, and keeps what became of them; a failure stops none."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PASSED, FAILED, NOT_RUN, INTERRUPTED = "passed", "failed", "not run", "interrupted"
TAIL_LINES = 25
END_S = 5.0  # what an interrupted step may take to clean up
LIMIT_S = 1800.0  # the first plan that a small Jetson builds takes many minutes


@dataclass(frozen=True)
class Step:
    """One step: `detail` says in a line what came of it, `tail` is the end of what a failed one said."""

    name: str
    state: str
    seconds: float = 0.0
    detail: str = ""
    command: str = ""
    tail: tuple[str, ...] = ()
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return self.state == PASSED


class Steps:
    """What was run so far, in order. `say` gets a line for each step."""

    def __init__(self, say: Callable[[str], None], limit_s: float = LIMIT_S) -> None:
        self.done: list[Step] = []
        self.running = ""  # the name of the step that has begun and is not kept yet
        self._say = say
        self._limit_s = limit_s

    def run(self, name: str, script: str, *options: object, shows: str = "", makes: Path | None = None) -> Step:
        """Run a script of the clone and keep the step; see `call`."""
        return self.add(self.call(name, script, *options, shows=shows, makes=makes))

    def call(self, name: str, script: str, *options: object, shows: str = "", makes: Path | None = None) -> Step:
        """Run a script of the clone: passed if its exit code is 0 and the file that it makes is there.

        The last of its lines that contains `shows` becomes the detail.
        """
        if makes is not None:
            makes.unlink(missing_ok=True)  # of an earlier self-test
        shown = shlex.join(["python", script, *map(str, options)])
        command = [sys.executable, str(ROOT / script), *map(str, options)]
        self.running = name
        self._say(f"{name}: {shown}")
        start = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="edgercnn-selftest-", ignore_cleanup_errors=True) as temporary:
            code, lines = _output_of(command, self._limit_s, temporary)
        seconds = round(time.perf_counter() - start, 2)
        if code == 0 and makes is not None and not makes.is_file():
            reason = f"{script} ended without an error and without {makes.name}"
            return Step(name, FAILED, seconds, reason, shown, tuple(lines[-TAIL_LINES:]))
        if code == 0:
            detail = next((line for line in reversed(lines) if shows in line), "")
            return Step(name, PASSED, seconds, " ".join(detail.split()), shown)
        reason = f"no end within {self._limit_s:g} s" if code is None else _ending(code, lines)
        return Step(name, FAILED, seconds, reason, shown, tuple(lines[-TAIL_LINES:]))

    def skip(self, name: str, reason: str) -> Step:
        """A step that cannot be run here."""
        return self.add(Step(name, NOT_RUN, detail=reason))

    def add(self, step: Step) -> Step:
        """Keep a step that was carried out elsewhere."""
        self.done.append(step)
        self.running = ""
        self._say(f"{step.name}: {step.state}{f', {step.seconds:.1f} s' if step.seconds else ''}: {step.detail}")
        return step


def _output_of(command: Sequence[str], limit_s: float, temporary: str) -> tuple[int | None, list[str]]:
    """Exit code (None: it was ended) and the lines that were said, on stdout and stderr alike."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "TMPDIR": temporary}
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    )
    try:
        said, _ = child.communicate(timeout=limit_s)
        code: int | None = child.returncode
    except subprocess.TimeoutExpired:
        _kill(child)
        said, code = child.communicate()[0], None
    except BaseException:  # Ctrl-C: the child is in a session of its own
        _interrupt(child)
        raise
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in said.decode("utf-8", errors="replace").split("\n")]
    return code, [line for line in lines if line]


def _interrupt(child: subprocess.Popen[bytes]) -> None:
    """Hand Ctrl-C on, so that the child removes what it has half written; what is left after END_S is killed."""
    with contextlib.suppress(OSError):
        os.killpg(child.pid, signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.communicate(timeout=END_S)
    _kill(child)
    child.wait()


def _kill(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError):
        os.killpg(child.pid, signal.SIGKILL)


def _ending(code: int, lines: Sequence[str]) -> str:
    last = lines[-1].removeprefix("error: ") if lines else "no output"
    if code >= 0:
        return last
    with contextlib.suppress(ValueError):
        return f"crashed ({signal.Signals(-code).name}): {last}"
    return f"crashed (signal {-code}): {last}"
