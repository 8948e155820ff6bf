"""Runs each check of the doctor in a process of its own: a library that aborts or hangs costs that check only.

A check is a function, named in `runtime/diagnosis/checks.py`, that puts what it finds into a mapping, one value after
another. The child writes each value to a file at once, so that what was found before a crash is kept.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHILD = Path(__file__).with_name("checks.py")
LIMIT_S = 120.0  # the first plan that TensorRT builds on a small board takes long
AT_A_TIME = 2  # several of the libraries at once are too much for the memory of a small board
SHORTER_THAN = 300  # characters of a problem that are kept


@dataclass(frozen=True)
class Finding:
    """What one check found: `values` as far as it came, and in `problem` why it went no further ("": it went through).

    mend: the command, or the advice, that removes the problem; "" where there is none.
    missing: the Python package whose absence is the problem, as it is imported; "" otherwise.
    timed_out: it was ended for its time, which says nothing of what is here.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""
    mend: str = ""
    missing: str = ""
    timed_out: bool = False

    @property
    def works(self) -> bool:
        """Whether the check went through."""
        return not self.problem

    def get(self, name: str, default: Any = None) -> Any:
        """A value, or `default` where the check did not come so far."""
        return self.values.get(name, default)


class CannotError(Exception):
    """What keeps a check from going on, in one phrase; `mend` is what removes it."""

    def __init__(self, problem: str, mend: str = "") -> None:
        super().__init__(problem)
        self.mend = mend


class Values(dict[str, Any]):
    """A dict that is in the file, too, as soon as a value is put into it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        self.save()

    def save(self, **state: Any) -> None:
        """Write the values, and `state` beside them; whole or not at all."""
        temporary = self._path.with_suffix(".new")
        temporary.write_text(json.dumps({"values": self, **state}), encoding="utf-8")
        temporary.replace(self._path)


def run_child(check: Callable[..., None], arguments: Sequence[str], result: Path) -> None:
    """In the child: run the check, write what it found to `result`."""
    values = Values(result)
    values.save()
    try:
        check(values, *arguments)
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        values.save(problem=f"the Python package {package} is not installed", missing=package)
    except CannotError as error:
        values.save(problem=str(error), mend=error.mend)
    except Exception as error:  # whatever a broken library raises
        values.save(problem=_sentence(error))
    else:
        values.save(problem="")


@contextlib.contextmanager
def ended_like_ctrl_c() -> Iterator[None]:
    """In this block SIGTERM is a KeyboardInterrupt, so that children are ended and temporary folders removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_checks(checks: Mapping[str, Sequence[str]], *, limit_s: float = LIMIT_S) -> dict[str, Finding]:
    """Run checks, AT_A_TIME of them at a time.

    Args:
        checks: name of a check: its arguments.
        limit_s: what a check may take.
    """
    with tempfile.TemporaryDirectory(prefix="edgercnn-doctor-", ignore_cleanup_errors=True) as folder:
        running: dict[str, subprocess.Popen[bytes]] = {}

        def run(name: str) -> Finding:
            return _run_check(name, checks[name], Path(folder), limit_s, running)

        pool = ThreadPoolExecutor(max_workers=AT_A_TIME)
        try:
            return dict(zip(checks, pool.map(run, checks)))
        except BaseException:  # Ctrl-C: the children are in sessions of their own
            pool.shutdown(wait=False, cancel_futures=True)
            for child in list(running.values()):
                _kill(child)
            raise
        finally:
            pool.shutdown(wait=True)


def _run_check(
    name: str, arguments: Sequence[str], folder: Path, limit_s: float, running: dict[str, subprocess.Popen[bytes]]
) -> Finding:
    result, said = folder / f"{name}.json", folder / f"{name}.txt"
    command = [sys.executable, str(CHILD), name, str(result), *arguments]
    environment = {**os.environ, "TMPDIR": str(folder)}  # what a child that is killed leaves goes with the folder
    with said.open("wb") as output:
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            return Finding(problem=f"no process for the check could be started ({error.strerror})")
        running[name] = child
        try:
            code = child.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _kill(child)
            del running[name]
    return _finding(result, said, code, limit_s)


def _finding(result: Path, said: Path, code: int | None, limit_s: float) -> Finding:
    """Of a child's file; where it wrote no end, why it came to none."""
    content: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        content = json.loads(result.read_text(encoding="utf-8"))
    values = content.get("values", {})
    if "problem" in content:
        problem = _shortened(content["problem"])
        return Finding(values, problem, content.get("mend", ""), content.get("missing", ""))
    if code is None:
        mend = f"python runtime/doctor.py --timeout {2 * limit_s:g}"
        return Finding(values, f"it gave no answer within {limit_s:g} s", mend, timed_out=True)
    lines = [line.strip() for line in said.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    ending = f"ended with exit code {code}" if code >= 0 else f"crashed ({_signal_name(-code)})"
    return Finding(values, _shortened(f"it {ending}{f', saying: {lines[-1]}' if lines else ''}"))


def _kill(child: subprocess.Popen[bytes]) -> None:
    """End what is left of it, and what it started."""
    with contextlib.suppress(OSError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _signal_name(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


def _sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return _shortened(lines[0]) if lines else type(error).__name__


def _shortened(text: str) -> str:
    text = " ".join(text.split()).rstrip(".")
    return text if len(text) <= SHORTER_THAN else text[: SHORTER_THAN - 3] + "..."
