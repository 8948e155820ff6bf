"""The files of one run: where they go, and what each frame adds to them."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime.detections import Detections
from runtime.errors import OutputError
from runtime.files import atomic_output, check_writable
from runtime.video.contact_sheet import ContactSheet
from runtime.video.drawing import draw_detections
from runtime.video.pipeline import StageClock
from runtime.video.sinks import JsonLinesWriter, VideoWriter, letterboxed, open_video_writer, write_picture
from runtime.video.sources import Frame, Source

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
LONGEST_SIDE = 1920  # of the video of a folder of images, px; a video keeps its own size


@dataclass(frozen=True)
class OutputPaths:
    """Paths of what a run writes; None: not written."""

    json: Path
    video: Path | None = None
    picture: Path | None = None  # the contact sheet, or the one annotated image

    def all(self) -> list[Path]:
        return [path for path in (self.video, self.picture, self.json) if path is not None]


def output_paths(source: Source, output: str | None, json: str | None, video: bool) -> OutputPaths:
    """Decide and check what is written: an MP4 with a contact sheet, or for one image a picture; JSON always.

    Raises:
        OutputError: a suffix that does not fit, a path that cannot be written, or one that is the source itself.
    """
    image = source.kind == "image"
    main = Path(output) if output else Path("output") / (source.name + (".png" if image else ".mp4"))
    expected = (*PICTURE_SUFFIXES, ".mp4") if image else (".mp4",)
    if main.suffix.lower() not in expected:
        raise OutputError(f"cannot write {main}: expected a name that ends in {' or '.join(expected)}.")
    json_path = Path(json) if json else main.with_suffix(".jsonl")
    if not video:
        paths = OutputPaths(json_path)
    elif main.suffix.lower() == ".mp4":
        paths = OutputPaths(json_path, main, main.with_suffix(".png"))
    else:
        paths = OutputPaths(json_path, None, main)
    sources = {path.resolve() for path in source.paths}
    for path in paths.all():
        if path.resolve() in sources:
            raise OutputError(f"{path} is the source itself: give another --output.")
        check_writable(path)
    if len({path.resolve() for path in paths.all()}) < len(paths.all()):
        raise OutputError(f"{json_path} is named twice: give --json another name than --output.")
    return paths


class RunOutputs:
    """Takes each frame of a run. Use within a `with`: files appear when it ends without an error, else none does."""

    def __init__(self, paths: OutputPaths, source: Source, *, keep_last: bool = False) -> None:
        self.last_drawn: np.ndarray | None = None  # for a window
        self.video_description = ""
        self._paths, self._source, self._keep_last = paths, source, keep_last
        self._sheet = ContactSheet()
        self._stack = ExitStack()
        self._video: VideoWriter | None = None
        self._frame_hw: tuple[int, int] = (0, 0)  # of the video

    def __enter__(self) -> RunOutputs:
        self._json = JsonLinesWriter(self._stack.enter_context(atomic_output(self._paths.json)))
        self._stack.callback(self._json.close)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.__exit__(*error)  # type: ignore[arg-type]

    def add(self, frame: Frame, detections: Detections, clock: StageClock) -> None:
        """Draw and encode one frame, and write its line of JSON."""
        with clock.measure("draw"):
            drawn = self._drawn(frame, detections)
        with clock.measure("encode"):
            if drawn is not None and self._paths.video is not None:
                self._writer().write(drawn, frame.time_s)
            self._json.write(frame, detections)
        self.last_drawn = drawn if self._keep_last or self._source.kind == "image" else None

    def write_picture(self) -> None:
        """Write the contact sheet, or the annotated image: called once, after the last frame."""
        if self._paths.picture is None:
            return
        single = self._source.kind == "image" and self.last_drawn is not None
        write_picture(self._paths.picture, self.last_drawn if single else self._sheet.picture())  # type: ignore[arg-type]

    def _drawn(self, frame: Frame, detections: Detections) -> np.ndarray | None:
        """The annotated frame in the size of the video; None where nobody looks at it."""
        if self._paths.picture is None and not self._keep_last:
            return None
        if self._paths.video is not None:
            caption = frame.name or f"frame {frame.index}   {frame.time_s:.2f} s"
            self._sheet.add(frame.pixels, detections, f"{caption}   {len(detections)} found")
        if self._frame_hw == (0, 0):
            self._frame_hw = self._video_size(frame.pixels)
        canvas, scale, offset = letterboxed(frame.pixels, self._frame_hw)
        return draw_detections(canvas, detections.scaled(scale, scale, *offset))

    def _video_size(self, first: np.ndarray) -> tuple[int, int]:
        height, width = first.shape[:2]
        shrink = min(1.0, LONGEST_SIDE / max(height, width)) if self._source.kind == "folder" else 1.0
        return max(1, round(height * shrink)), max(1, round(width * shrink))

    def _writer(self) -> VideoWriter:
        """The MP4, begun with its first frame."""
        if self._video is None:
            assert self._paths.video is not None
            path = self._stack.enter_context(atomic_output(self._paths.video))
            self._video = open_video_writer(path, self._frame_hw, self._source.fps)
            self._stack.callback(self._video.close)
            self.video_description = f"{self._video.description}, {self._frame_hw[1]} x {self._frame_hw[0]}"
        return self._video
