"""What a run writes: MP4, JSON lines, PNG. The two writers fill the path they are given; the caller makes it atomic.

Frames are uint8 [height, width, 3] BGR.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from runtime.detections import Detections
from runtime.errors import OutputError, RunError
from runtime.files import atomic_output
from runtime.video.sources import Frame

TICKS_PER_S = 90_000  # of the video's clock
H264_OPTIONS = {"preset": "veryfast", "crf": "23"}


class VideoWriter(Protocol):
    """Encodes frames of one size."""

    description: str

    def write(self, frame: np.ndarray, time_s: float) -> None:
        """Add a frame, shown `time_s` seconds after the start; times should increase."""
        ...

    def close(self) -> None:
        """Finish the file; without it the file does not play."""
        ...


def open_video_writer(path: Path, frame_hw: tuple[int, ...], fps: float) -> VideoWriter:
    """H.264 through PyAV where it is installed, else MPEG-4 through OpenCV (which few browsers play).

    Raises:
        OutputError: neither can encode here.
    """
    try:
        import av

        av.codec.Codec("libx264", "w")
    except (ImportError, ValueError):  # PyAV's UnknownCodecError is a ValueError
        return OpenCvWriter(path, frame_hw, fps)
    return H264Writer(path, frame_hw, fps)


class H264Writer:
    """MP4 with H.264, yuv420p and its index in front, so that browsers play it as it loads. Keeps the frames' times."""

    description = "H.264"

    def __init__(self, path: Path, frame_hw: tuple[int, ...], fps: float) -> None:
        import av

        self._av: Any = av
        self._padding = (frame_hw[0] % 2, frame_hw[1] % 2)  # yuv420p needs even sides
        self._last_tick = -1
        with encoding_errors(path):
            self._container = av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"})
            rate = Fraction(fps).limit_denominator(1001)
            self._stream: Any = self._container.add_stream("libx264", rate=rate, options=dict(H264_OPTIONS))
            self._stream.height, self._stream.width = frame_hw[0] + self._padding[0], frame_hw[1] + self._padding[1]
            self._stream.pix_fmt = "yuv420p"
            self._stream.codec_context.time_base = Fraction(1, TICKS_PER_S)
        self._path = path

    def write(self, frame: np.ndarray, time_s: float) -> None:
        if any(self._padding):
            frame = cv2.copyMakeBorder(frame, 0, self._padding[0], 0, self._padding[1], cv2.BORDER_REPLICATE)
        with encoding_errors(self._path):
            picture = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="bgr24")
            picture.pts = self._last_tick = max(round(time_s * TICKS_PER_S), self._last_tick + 1)
            picture.time_base = Fraction(1, TICKS_PER_S)
            self._container.mux(self._stream.encode(picture))

    def close(self) -> None:
        with encoding_errors(self._path):
            self._container.mux(self._stream.encode(None))
            self._container.close()


class OpenCvWriter:
    """MP4 with MPEG-4 part 2, at a constant frame rate."""

    description = "MPEG-4, which few browsers play (`pip install av` gives H.264)"

    def __init__(self, path: Path, frame_hw: tuple[int, ...], fps: float) -> None:
        size = (frame_hw[1], frame_hw[0])
        self._writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), fps, size)  # type: ignore[attr-defined]
        if not self._writer.isOpened():
            raise OutputError(f"cannot encode {path}: this OpenCV has no MPEG-4 encoder; `pip install av`.")

    def write(self, frame: np.ndarray, time_s: float) -> None:
        self._writer.write(frame)

    def close(self) -> None:
        self._writer.release()


class JsonLinesWriter:
    """One JSON object per frame and line; boxes in px of the source's frame."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("w", encoding="utf-8")

    def write(self, frame: Frame, detections: Detections) -> None:
        with encoding_errors(self._path):
            self._file.write(json.dumps(frame_record(frame, detections), ensure_ascii=False) + "\n")

    def close(self) -> None:
        with encoding_errors(self._path):
            self._file.close()


def frame_record(frame: Frame, detections: Detections) -> dict[str, Any]:
    """What a line of the JSON says about a frame."""
    rows = zip(detections.names, detections.class_ids, detections.scores, detections.boxes_xyxy, strict=True)
    height, width = frame.pixels.shape[:2]
    record: dict[str, Any] = {"frame": frame.index, "time_s": round(frame.time_s, 4)}
    if frame.name:
        record["file"] = frame.name
    record |= {"width": width, "height": height}
    record["detections"] = [
        {
            "class": name,
            "class_id": int(class_id),
            "score": round(float(score), 4),
            "box_xyxy": [round(float(side), 2) for side in box],
        }
        for name, class_id, score, box in rows
    ]
    return record


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Write a PNG, JPEG or what else the suffix says, whole or not at all.

    Raises:
        OutputError: the path cannot be written.
    """
    _, data = cv2.imencode(path.suffix, picture)
    with atomic_output(path) as temporary:
        temporary.write_bytes(data.tobytes())


def letterboxed(frame: np.ndarray, target_hw: tuple[int, ...]) -> tuple[np.ndarray, float, tuple[int, int]]:
    """`frame` resized to fit the target, centred on black; with the scale and the offset (x, y) px."""
    height, width = frame.shape[:2]
    if (height, width) == tuple(target_hw):
        return frame, 1.0, (0, 0)
    scale = min(target_hw[0] / height, target_hw[1] / width)
    fit_h, fit_w = max(1, int(height * scale)), max(1, int(width * scale))
    top, left = (target_hw[0] - fit_h) // 2, (target_hw[1] - fit_w) // 2
    canvas = np.zeros((target_hw[0], target_hw[1], 3), np.uint8)
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    canvas[top : top + fit_h, left : left + fit_w] = cv2.resize(frame, (fit_w, fit_h), interpolation=interpolation)
    return canvas, scale, (left, top)


@contextmanager
def encoding_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system or FFmpeg says while writing into one sentence.

    Raises:
        RunError: writing failed, for instance on a full disk.
    """
    try:
        yield
    except (OSError, ValueError) as error:  # PyAV's errors are either
        reason = getattr(error, "strerror", None) or str(error)
        raise RunError(f"writing into {path.parent} failed ({reason}): see that the disk has room.") from error
