"""Ctrl-C waits for the end of a block."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from training.interrupts import postponed_interrupt


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_comes_at_the_end_of_the_block():
    done = []

    def work():
        with postponed_interrupt():
            press_ctrl_c()
            done.append("all of it")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["all of it"]
    with pytest.raises(KeyboardInterrupt):  # and behind it as always
        press_ctrl_c()


def test_another_thread_just_runs():
    done = []

    def work():
        with postponed_interrupt():
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]
