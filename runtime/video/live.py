"""Cameras and streams: sources without an end, which may be lost and come back."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from runtime.errors import SourceError, StreamError
from runtime.video.sources import EXPECTED, Frame, Notify, Source, declared_fps, declared_frames, without_password

TIMEOUT_MS = 5000  # for opening a URL, and for each frame of it
BACKOFF_S = (0.5, 1.0, 2.0, 4.0, 8.0, 8.0)  # waits before each attempt to reconnect
SCHEMES = ("rtsp", "rtsps", "rtmp", "http", "https", "udp", "tcp", "srt", "rtp")

Opener = Callable[[], Any]  # gives a cv2.VideoCapture, opened or not


def open_live(text: str, notify: Notify) -> Source:
    """A camera number, URL or GStreamer pipeline; a URL with an end (a video file on a server) is read as a file is.

    Raises:
        SourceError: nothing answers within TIMEOUT_MS, or it gives no frame.
    """
    shown, name, opener = _address(text)
    capture = opener()
    ok, pixels = capture.read() if capture.isOpened() else (False, None)
    if not ok or pixels is None:
        capture.release()
        raise SourceError(_no_answer(text, shown))
    if text.startswith("http") and declared_frames(capture):
        return RemoteVideo(shown, name, capture, pixels)
    return LiveSource(shown, name, opener, capture, pixels, notify)


class LiveSource:
    """Reads the newest frame; on silence, reconnects with growing waits, a bounded number of times."""

    kind = "live"
    frame_count: int | None = None

    def __init__(
        self, shown: str, name: str, opener: Opener, capture: Any, first: np.ndarray, notify: Notify = print
    ) -> None:
        self.name, self.paths = name, list[Path]()
        self.fps = declared_fps(capture)
        self._shown, self._opener, self._notify = shown, opener, notify
        self._capture: Any = capture
        self._pending: np.ndarray | None = first
        self._cancelled = threading.Event()
        self._reading = threading.Lock()
        self._count, self._start = 0, time.monotonic()

    def read(self) -> Frame | None:
        with self._reading:
            return self._next_frame()

    def cancel(self) -> None:
        self._cancelled.set()

    def close(self) -> None:
        if self._reading.acquire(blocking=False):  # not while a read hangs in another thread: OpenCV would crash
            self._capture.release()

    def _next_frame(self) -> Frame | None:
        pixels, self._pending = self._pending, None
        if pixels is None:
            ok, pixels = self._capture.read()
            if not ok:
                pixels = self._reconnect()
        if pixels is None:
            return None
        now = time.monotonic()
        if self._count == 0:
            self._start = now
        self._count += 1
        return Frame(self._count - 1, now - self._start, pixels)

    def _reconnect(self) -> np.ndarray | None:
        """The first frame after a loss; None when cancelled.

        Raises:
            StreamError: it did not come back.
        """
        lost = time.monotonic()
        self._capture.release()
        for attempt, wait_s in enumerate(BACKOFF_S, 1):
            self._notify(f"{self._shown} gives no frames; attempt {attempt} of {len(BACKOFF_S)} in {wait_s:g} s.")
            if self._cancelled.wait(wait_s):
                return None
            self._capture = self._opener()
            ok, pixels = self._capture.read() if self._capture.isOpened() else (False, None)
            if ok:
                self._notify(f"{self._shown} is back after {time.monotonic() - lost:.1f} s.")
                return pixels
            self._capture.release()
        raise StreamError(
            f"{self._shown} stopped after {self._count} frames and did not come back in "
            f"{time.monotonic() - lost:.0f} s: check its power and cable or network."
        )


class RemoteVideo:
    """A video file behind a URL: has an end, never drops."""

    kind = "video"

    def __init__(self, shown: str, name: str, capture: Any, first: np.ndarray) -> None:
        self.name, self.paths = name, list[Path]()
        self.fps = declared_fps(capture)
        self.frame_count = declared_frames(capture)
        self._shown = shown
        self._capture: Any = capture
        self._pending: np.ndarray | None = first
        self._count = 0

    def read(self) -> Frame | None:
        pixels, self._pending = self._pending, None
        if pixels is None:
            ok, pixels = self._capture.read()
            if not ok:
                if self.frame_count and self._count < 0.95 * self.frame_count - 2:
                    raise StreamError(f"{self._shown} ended after {self._count} of {self.frame_count} frames.")
                return None
        self._count += 1
        return Frame(self._count - 1, (self._count - 1) / self.fps, pixels)

    def cancel(self) -> None:
        """TIMEOUT_MS bounds each wait."""

    def close(self) -> None:
        self._capture.release()


def _address(text: str) -> tuple[str, str, Opener]:
    """What to call it in messages, what in file names, and how to open it."""
    if text.isdigit():
        return f"camera {text}", f"camera{text}", lambda: _opened_camera(int(text))
    if "://" not in text.split(" ! ")[0]:
        if not cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER):
            raise SourceError("the source is a GStreamer pipeline, and this OpenCV was built without GStreamer.")
        return "the GStreamer pipeline", "gstreamer", lambda: cv2.VideoCapture(text, cv2.CAP_GSTREAMER)
    shown = without_password(text)
    scheme = shown.split("://")[0].lower()
    if scheme not in SCHEMES:
        raise SourceError(f"{shown} has the scheme {scheme}: expected one of {', '.join(SCHEMES)}.")
    name = re.sub(r"[^A-Za-z0-9]+", "_", Path(shown.split("://")[1]).with_suffix("").as_posix()).strip("_")
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, TIMEOUT_MS]
    return shown, name or "stream", lambda: cv2.VideoCapture(text, cv2.CAP_FFMPEG, limits)


def _opened_camera(index: int) -> Any:
    capture = cv2.VideoCapture(index)
    capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # old frames help nobody
    return capture


def _no_answer(text: str, shown: str) -> str:
    if text.isdigit():
        devices = sorted(path.name for path in Path("/dev").glob("video*"))
        there = f"devices here: {', '.join(devices)}" if devices else "no camera device is on this machine"
        return f"{shown} cannot be opened or gives no frame ({there}): {EXPECTED}."
    return f"{shown} gave no frame within {TIMEOUT_MS / 1e3:g} s: check the address and that the stream is on."
