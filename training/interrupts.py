"""Ctrl-C that waits for what must not be left half done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def postponed_interrupt() -> Iterator[None]:
    """While the block runs, Ctrl-C is only noted; KeyboardInterrupt comes at its end, also if the block raised.

    Signals go to the main thread; in another one the block just runs.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    noted: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, frame: noted.append(number)) or signal.SIG_DFL
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        if noted and previous is not signal.SIG_IGN:
            raise KeyboardInterrupt
