"""Run a build in a process of its own.

TensorRT may abort the process that it runs in, keeps the first logger of a process for good, and for minutes does not
ask whether to go on. In another process an abort becomes one sentence, and Ctrl-C is obeyed.
"""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from export.engine_builder import BuildRequest, BuildResult
from export.engine_progress import Show
from runtime.errors import RunError

WORKER = Path(__file__).resolve().with_name("engine_worker.py")
PATIENCE_S = 3.0  # for a build that was told to stop, before it is killed


def run_build(request: BuildRequest, model: bytes, *, say: Callable[[str], None], show: Show) -> BuildResult:
    """`build_plan` in a new process; Ctrl-C ends it.

    Raises:
        EdgeRcnnError: what `build_plan` raises.
        RunError: the process ended without an answer.
    """
    command = [sys.executable, str(WORKER)]
    with tempfile.TemporaryFile() as errors:
        worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
        try:
            result = _converse(worker, request, model, say, show)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            code = worker.wait()
            raise RunError(_crash_sentence(code, _last_line(errors))) from None
        finally:
            _stop(worker)
            if request.options.verbose:
                _tell(errors, say)
    return result


def _converse(
    worker: subprocess.Popen[bytes], request: BuildRequest, model: bytes, say: Callable[[str], None], show: Show
) -> BuildResult:
    assert worker.stdin is not None
    assert worker.stdout is not None
    pickle.dump((request, model), worker.stdin, protocol=pickle.HIGHEST_PROTOCOL)
    worker.stdin.flush()
    while True:
        kind, *content = pickle.load(worker.stdout)
        if kind == "error":
            raise content[0]
        if kind == "result":
            result: BuildResult = content[0]
            return result
        (say if kind == "say" else show)(*content)


def _stop(worker: subprocess.Popen[bytes]) -> None:
    """End the process: by closing its stdin, which it watches, or, when it does not look, by force."""
    try:
        assert worker.stdin is not None
        worker.stdin.close()
        worker.wait(timeout=PATIENCE_S)
    except (subprocess.TimeoutExpired, BrokenPipeError):
        pass
    finally:
        worker.kill()
        worker.wait()
        if worker.stdout is not None:
            worker.stdout.close()


def _last_line(errors: IO[bytes]) -> str:
    lines = [line.strip() for line in _text(errors).splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _text(errors: IO[bytes]) -> str:
    errors.seek(0)
    return errors.read().decode("utf-8", errors="replace")


def _tell(errors: IO[bytes], say: Callable[[str], None]) -> None:
    for line in _text(errors).splitlines():
        say(line)


def _crash_sentence(code: int, last_line: str) -> str:
    last = f"; its last words: {last_line}" if last_line else ""
    if code == -signal.SIGKILL:
        return f"the build was killed{last}: mostly this is for lack of memory; close other programs or add swap."
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    return f"TensorRT's process {how} in the build{last}: run the command again with --verbose and report its log."
