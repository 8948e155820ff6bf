"""Tries OpenCV, PyAV, reading and writing of video, and windows, for the doctor; each runs in a process of its own."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from runtime.diagnosis.children import CannotError, Values

FRAMES, SIZE_HW, FPS = 8, (48, 64), 10.0
ENCODERS = ("libx264", "h264_nvenc", "h264_v4l2m2m", "libopenh264")
BACKENDS = ("FFMPEG", "GSTREAMER", "V4L2")
GREY_STEP = 20  # from frame to frame; what is read is told apart by it


def check_opencv(values: Values) -> None:
    """Version, and which of the video backends it was built with."""
    import cv2

    values["version"] = cv2.__version__
    registry = cv2.videoio_registry
    known = {registry.getBackendName(number) for number in registry.getBackends() if registry.hasBackend(number)}
    values["backends"] = [name for name in BACKENDS if name in known]


def check_pyav(values: Values) -> None:
    """Version, and its H.264 encoders."""
    import av

    values["version"] = av.__version__
    found = []
    for name in ENCODERS:
        try:
            av.codec.Codec(name, "w")
        except ValueError:  # PyAV's UnknownCodecError
            continue
        found.append(name)
    values["encoders"] = found
    if "libx264" not in found:
        raise CannotError("PyAV is here without libx264")


def check_video(values: Values) -> None:
    """Write a video of a few grey frames as `run_video` does, and read it again."""
    import cv2
    import numpy as np

    from runtime.video.sinks import open_video_writer
    from runtime.video.sources import VideoFile

    frames = [np.full((*SIZE_HW, 3), 40 + GREY_STEP * index, np.uint8) for index in range(FRAMES)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "doctor.mp4"
        try:
            writer = open_video_writer(path, SIZE_HW, FPS)
            for index, frame in enumerate(frames):
                writer.write(frame, index / FPS)
            writer.close()
            values["codec"] = writer.description.split(",")[0]
        except Exception as error:  # reading is tried nevertheless
            values["write_problem"] = str(error).rstrip(".") or type(error).__name__
            path = Path(folder) / "doctor.avi"
            _write_motion_jpeg(cv2, path, frames)
        source = VideoFile(path, lambda line: None)
        try:
            read = [frame.pixels for frame in iter(source.read, None)]
        finally:
            source.close()
    off = [abs(float(seen.mean()) - float(drawn.mean())) for seen, drawn in zip(read, frames)]
    if len(read) != FRAMES or max(off) > GREY_STEP / 2:
        raise CannotError(
            f"of {FRAMES} grey frames written {len(read)} were read, {max(off, default=0):.0f} of 255 off"
        )
    values["read"] = len(read)


def _write_motion_jpeg(cv2: Any, path: Path, frames: Any) -> None:
    """With the encoder that every OpenCV brings itself."""
    size = (SIZE_HW[1], SIZE_HW[0])
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), FPS, size)
    for frame in frames:
        writer.write(frame)
    writer.release()


def check_window(values: Values) -> None:
    """Open a window, as `run_video --show` does."""
    import cv2

    from runtime.errors import BackendUnavailableError
    from runtime.video.window import Window

    values["toolkit"] = getattr(cv2, "currentUIFramework", str)()
    try:
        Window().close()
    except BackendUnavailableError as error:
        raise CannotError("there is no display, or this OpenCV was built without windows") from error
