"""The process that TensorRT builds in; started by engine_process.py, which it talks to in pickled messages.

stdin: (BuildRequest, bytes of the ONNX file), then open for as long as the build is wanted.
stdout: ("show", fraction, phase), ("say", line), and at last ("result", BuildResult) or ("error", EdgeRcnnError).
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run by path: import from the clone's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import contextlib
import os
import pickle
import signal
import threading
from typing import BinaryIO

from export.engine_builder import BuildRequest, build_plan
from runtime.errors import EdgeRcnnError

SMALLEST_STEP = 0.005  # of progress that is worth a message


class Messages:
    """Messages to the other process, from any thread."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._lock = stream, threading.Lock()
        self._shown = (-1.0, "")

    def send(self, *message: object) -> None:
        # without a reader our stdin has ended as well, which stops the build; TensorRT's threads must see no exception
        with self._lock, contextlib.suppress(BrokenPipeError):
            pickle.dump(message, self._stream, protocol=pickle.HIGHEST_PROTOCOL)
            self._stream.flush()

    def say(self, line: str) -> None:
        self.send("say", line)

    def show(self, fraction: float, phase: str) -> None:
        if fraction - self._shown[0] >= SMALLEST_STEP or phase != self._shown[1]:
            self._shown = (fraction, phase)
            self.send("show", fraction, phase)


def main() -> int:
    """Build what stdin asks for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the other process's to hear, which closes our stdin
    messages = Messages(_private_stdout())
    request, model = _received()
    cancelled = threading.Event()
    threading.Thread(target=_wait_for_end, args=(cancelled,), daemon=True).start()
    try:
        result = build_plan(request, model, say=messages.say, show=messages.show, is_cancelled=cancelled.is_set)
    except EdgeRcnnError as error:
        messages.send("error", error)
        return 0
    messages.send("result", result)
    return 0


def _received() -> tuple[BuildRequest, bytes]:
    request, model = pickle.load(sys.stdin.buffer)
    return request, model


def _private_stdout() -> BinaryIO:
    """stdout for our messages alone: what libraries print there goes to stderr."""
    stream = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return stream


def _wait_for_end(cancelled: threading.Event) -> None:
    """Set `cancelled` when the other process closes our stdin, or dies."""
    while os.read(0, 1):
        pass
    cancelled.set()


if __name__ == "__main__":
    sys.exit(main())
