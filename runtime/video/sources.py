"""Where frames come from: a video, a folder of images, an image, a camera, a stream. `open_source` tells them apart.

Frames are uint8 [height, width, 3] BGR.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # quiet: our errors say what its log would; read by cv2 later

import cv2
import numpy as np

from runtime.errors import SourceError, StreamError
from runtime.images import SUFFIXES, read_image
from runtime.video.containers import damage

_set_log_level: Any = cv2.setLogLevel if hasattr(cv2, "setLogLevel") else cv2.utils.logging.setLogLevel  # 4 and 5
_set_log_level(0)

EXPECTED = "expected a video, an image, a folder of images, a camera number or a stream's URL"
IMAGES_PER_SECOND = 2.0  # how fast a folder of images plays in the output video
USUAL_FPS = 25.0  # where a source declares none
Notify = Callable[[str], None]


@dataclass(frozen=True)
class Frame:
    """One picture of a source: `index` from 0, `time_s` seconds since the first, `name` of the file if it is one."""

    index: int
    time_s: float
    pixels: np.ndarray
    name: str = ""


class Source(Protocol):
    """Gives frames one by one."""

    name: str  # short, fit for a file name
    kind: str  # "video", "image", "folder" or "live"
    fps: float
    frame_count: int | None  # None: not known before the end
    paths: list[Path]  # files that it reads and nobody may overwrite

    def read(self) -> Frame | None:
        """The next frame, None after the last.

        Raises:
            SourceError, StreamError: it cannot be read, or broke before its end.
        """
        ...

    def cancel(self) -> None:
        """Make a `read` that waits in another thread give up soon."""
        ...

    def close(self) -> None:
        """Release the file or the device."""
        ...


def open_source(text: str, notify: Notify = print) -> Source:
    """The source that `text` names: path, folder, camera number, URL, or GStreamer pipeline ("... ! appsink").

    Args:
        text: see above.
        notify: takes sentences about what happens on the way (a camera that is lost and found again).

    Raises:
        SourceError: there is no such source, or it gives no frame.
    """
    from runtime.video.live import open_live  # imports this module

    if text.isdigit() or "://" in text or " ! " in text:
        return open_live(text, notify)
    path = Path(text).expanduser()
    if path.is_dir():
        return ImageFolder(path)
    if not path.exists():
        raise SourceError(f"{text} does not exist: {EXPECTED}.")
    if path.suffix.lower() in SUFFIXES:
        return ImageFile(path)
    return VideoFile(path, notify)


class ImageFile:
    """One image."""

    kind = "image"
    fps = IMAGES_PER_SECOND
    frame_count: int | None = 1

    def __init__(self, path: Path) -> None:
        self.name = path.stem
        self.paths = [path]
        self._pixels: np.ndarray | None = read_image(path)

    def read(self) -> Frame | None:
        pixels, self._pixels = self._pixels, None
        return None if pixels is None else Frame(0, 0.0, pixels, self.paths[0].name)

    def cancel(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing is held."""


class ImageFolder:
    """The images of a folder (not of folders in it) in the order of their names."""

    kind = "folder"
    fps = IMAGES_PER_SECOND

    def __init__(self, folder: Path) -> None:
        self.name = folder.resolve().name or "images"
        self.paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
        if not self.paths:
            raise SourceError(f"{folder} has no images: expected files with a name in {', '.join(SUFFIXES)}.")
        read_image(self.paths[0])
        self.frame_count: int | None = len(self.paths)
        self._next = 0

    def read(self) -> Frame | None:
        if self._next == len(self.paths):
            return None
        index, path = self._next, self.paths[self._next]
        if not path.exists():
            raise StreamError(f"{path} was deleted while the folder was being read, after {index} images.")
        self._next += 1
        return Frame(index, index / self.fps, read_image(path), path.name)

    def cancel(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing is held."""


class VideoFile:
    """A video that has an end: a file, or one behind an http URL."""

    kind = "video"

    def __init__(self, path: Path, notify: Notify = print) -> None:
        if path.is_file() and path.stat().st_size == 0:
            raise SourceError(f"{path} is empty (0 bytes): {EXPECTED}.")
        capture = cv2.VideoCapture(str(path), _file_backend())
        ok, pixels = capture.read() if capture.isOpened() else (False, None)
        if not ok:
            capture.release()
            broken = damage(path)
            raise SourceError(f"{path} {broken}; copy it again." if broken else f"{path} is not a video: {EXPECTED}.")
        self.name = path.stem
        self.paths = [path]
        self.fps = declared_fps(capture)
        self.frame_count: int | None = declared_frames(capture)
        self._capture, self._pending, self._notify = capture, pixels, notify
        self._count, self._time_s = 0, 0.0

    def read(self) -> Frame | None:
        pixels, self._pending = self._pending, None
        if pixels is None:
            ok, pixels = self._capture.read()
            if not ok:
                self._check_end()
                return None
        index = self._count
        self._count += 1
        if index:
            declared_s = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1e3
            self._time_s = declared_s if declared_s > self._time_s else self._time_s + 1 / self.fps
        return Frame(index, self._time_s, pixels)

    def cancel(self) -> None:
        """A file does not wait."""

    def close(self) -> None:
        self._capture.release()

    def _check_end(self) -> None:
        """The decoder gives no more frames: is that the end?"""
        declared = f" of {self.frame_count}" if self.frame_count else ""
        broken = damage(self.paths[0])
        if broken:
            raise StreamError(f"{self.paths[0]} {broken}; {self._count}{declared} frames could be read.")
        if self.frame_count and self._count < 0.95 * self.frame_count - 2:
            self._notify(f"note: {self.paths[0]} declares {self.frame_count} frames, {self._count} could be decoded.")


def declared_fps(capture: Any) -> float:
    """Frames per second that an opened cv2.VideoCapture declares, USUAL_FPS if that makes no sense."""
    fps = capture.get(cv2.CAP_PROP_FPS)
    return fps if math.isfinite(fps) and 0.1 <= fps <= 1000 else USUAL_FPS


def declared_frames(capture: Any) -> int | None:
    """Frames that an opened cv2.VideoCapture declares, None if it knows no number."""
    count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    return int(count) if math.isfinite(count) and 0 < count < 1e9 else None


def without_password(url: str) -> str:
    """A URL fit for messages: credentials and query left out."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"


def _file_backend() -> int:
    """FFmpeg where OpenCV has it: the other backends guess at what is no video, and print about it."""
    known = cv2.videoio_registry.getBackends()
    return cv2.CAP_FFMPEG if cv2.CAP_FFMPEG in known else cv2.CAP_ANY
