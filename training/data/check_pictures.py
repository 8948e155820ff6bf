"""Opens every picture of a data set, with several processes: what is wrong with it, and a digest of what it shows."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import cv2

from runtime.annotated_images import CocoImage
from runtime.annotation_faults import Fault
from runtime.errors import RunError, SourceError
from runtime.progress import progress_bar
from training.data.damage import read_and_listen

CHUNK = 32  # pictures per task
DAMAGED = "damaged-image"


class Picture(NamedTuple):
    """What was found of one picture. digest: of its size and pixels, None if it cannot be read."""

    faults: tuple[Fault, ...]
    digest: str | None

    @property
    def hindrance(self) -> Fault | None:
        """Why training and evaluation cannot use it: one that is damaged inside they can."""
        return next((fault for fault in self.faults if fault.kind != DAMAGED), None)


def check_pictures(images: Sequence[CocoImage], workers: int) -> list[Picture]:
    """Opens all pictures, in their order, with a progress bar.

    Raises:
        RunError: a worker process was killed.
    """
    wanted = [(image.path, image.height, image.width) for image in images]
    chunks = [wanted[start : start + CHUNK] for start in range(0, len(wanted), CHUNK)]
    found: list[Picture] = []
    with progress_bar(len(wanted), "opening images") as advance:
        if workers == 1 or len(chunks) < 2:
            for chunk in chunks:
                found += _check_chunk(chunk)
                advance(len(chunk))
            return found
        # spawn: forking a process that has used OpenCV's threads can hang
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(min(workers, len(chunks)), mp_context=context, initializer=_start_worker)
        try:
            for pictures in pool.map(_check_chunk, chunks):
                found += pictures
                advance(len(pictures))
        except BrokenProcessPool as error:
            raise RunError("a worker process was killed (memory?): run again with fewer --workers.") from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return found


def check_picture(path: Path, height: int, width: int) -> Picture:
    """Opens one picture, which its annotations say is height x width px."""
    if not os.path.isfile(path):  # unlike Path's, False for names that are too long
        return Picture((Fault("missing-image", str(path), "is not there; add it, or remove its annotations"),), None)
    try:
        frame, complaint = read_and_listen(path)
    except SourceError as error:
        reason = str(error).removeprefix(f"{path} ").rstrip(".")
        return Picture((Fault("unreadable-image", str(path), reason),), None)
    digest = hashlib.blake2b(f"{frame.shape}".encode() + frame.tobytes(), digest_size=16).hexdigest()
    faults: list[Fault] = []
    if complaint is not None:
        message = f"is damaged inside ({complaint}), so that a part of it may show something else; copy it again"
        faults.append(Fault(DAMAGED, str(path), message))
    if frame.shape[:2] != (height, width):
        message = f"is {frame.shape[1]}x{frame.shape[0]} px, but its annotations say {width}x{height}"
        faults.append(Fault("wrong-size", str(path), message))
    return Picture(tuple(faults), digest)


def _check_chunk(chunk: Sequence[tuple[Path, int, int]]) -> list[Picture]:
    return [check_picture(*wanted) for wanted in chunk]


def _start_worker() -> None:
    """One core for each worker; Ctrl-C is the main process's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
