"""A clip of the moving belt, drawn by the same renderer as the still pictures, and its ground truth.

One long strip of belt is drawn with its parts; each frame is the window that the camera sees of it. So parts enter at
the left border, cross the picture with the belt's speed and leave at the right one, and the texture moves with them.
Glossary: H, W frame sides, px; N annotated parts of a frame. Boxes are xyxy float32 in image px.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from runtime.conveyor.camera import expose, sample_camera
from runtime.conveyor.dataset import GENERATOR, coco_document, coco_entries, write_json
from runtime.conveyor.scene import FRAME_HW, Scene, annotate, render_strip, unit_scale
from runtime.errors import OutputError
from runtime.files import atomic_output

VIDEO_STREAM = 2_000_000_000  # first key of a clip's random numbers; no still picture has this index
DEMO_SEED = 5  # all six classes in sight
PARTS_PER_FRAME = 6.0
MAX_TRAVEL = 30_000  # px; the strip is kept in memory as float32


@dataclass(frozen=True)
class Clip:
    """A clip to iterate over; every pass gives the same Scenes.

    frames: how many. seed: which belt, light, camera and parts. speed: px per frame, whole, to the right.
    Scene.part_ids are the tracks: one part keeps its number for the whole clip.
    """

    frames: int = 150
    seed: int = DEMO_SEED
    speed: int = 4
    size_hw: tuple[int, int] = FRAME_HW

    def __post_init__(self) -> None:
        if self.frames < 1 or self.speed < 0 or self.seed < 0 or self.travel > MAX_TRAVEL:
            raise ValueError(
                f"need frames >= 1, speed and seed >= 0 and at most {MAX_TRAVEL} px of travel; "
                f"got {self.frames} frames at {self.speed} px, seed {self.seed}"
            )

    @property
    def travel(self) -> int:
        """How far the belt moves from the first frame to the last, px."""
        return (self.frames - 1) * self.speed

    def __len__(self) -> int:
        return self.frames

    def __iter__(self) -> Iterator[Scene]:
        height, width = self.size_hw
        rng = np.random.default_rng([self.seed, VIDEO_STREAM])
        length = width + self.travel
        scale = unit_scale(self.size_hw)
        count = max(round(PARTS_PER_FRAME * length / (FRAME_HW[1] * scale)), 1)
        strip = render_strip(rng, (height, length), scale, count)
        camera = sample_camera(rng, self.size_hw)
        for index in range(self.frames):
            left = self.travel - index * self.speed
            window = np.ascontiguousarray(strip.picture[:, left : left + width])
            grain = np.random.default_rng([self.seed, VIDEO_STREAM, 1 + index])
            yield annotate(expose(grain, window, camera), strip, left, width)


@dataclass(frozen=True)
class ClipFiles:
    """What write_demo_clip made: the video, its COCO annotations and the codec that was used."""

    video: Path
    annotations: Path
    codec: str


def write_demo_clip(
    path: str | Path,
    frames: int = 150,
    fps: int = 25,
    seed: int = DEMO_SEED,
    *,
    speed: int = 4,
    size_hw: tuple[int, int] = FRAME_HW,
) -> ClipFiles:
    """Writes the clip as MP4 and its ground truth beside it, same name with .json.

    H.264 (yuv420p, crf 18) where PyAV with libx264 is installed, else MPEG-4 through OpenCV; `codec` says which.
    The JSON is COCO's; an image's frame_index is its place in the video, an annotation's track_id its part. Entries for
    file_name are names only: no pictures are written.

    Raises: OutputError: the path cannot be written or no encoder is there. ValueError: see Clip; fps below 1.
    """
    if fps < 1:
        raise ValueError(f"received fps={fps}: give at least 1.")
    path = Path(path)
    if path.suffix.lower() != ".mp4":
        raise OutputError(f"cannot write a clip to {path}: give a name that ends in .mp4.")
    clip = Clip(frames, seed, speed, size_hw)
    images: list[dict] = []
    annotations: list[dict] = []

    def pictures() -> Iterator[np.ndarray]:
        for index, scene in enumerate(clip):
            height, width = scene.frame.shape[:2]
            name = f"{path.stem}/{index:06d}.png"
            images.append({"id": index + 1, "file_name": name, "height": height, "width": width, "frame_index": index})
            entries = coco_entries(scene, index + 1)
            for entry, part in zip(entries, scene.part_ids.tolist(), strict=True):
                entry["track_id"] = part + 1
            annotations.extend(entries)
            yield scene.frame

    with atomic_output(path) as temporary:
        codec = write_mp4(temporary, pictures(), fps, size_hw)
    info = {"description": "generated conveyor clip", "generator": GENERATOR, "video": path.name, "fps": fps,
            "seed": seed, "speed_px_per_frame": speed}  # fmt: skip
    truth = path.with_suffix(".json")
    write_json(truth, coco_document(images, annotations, info))
    return ClipFiles(path, truth, codec)


def write_mp4(path: Path, frames: Iterator[np.ndarray], fps: int, size_hw: tuple[int, int]) -> str:
    """Encodes uint8 [H,W,3] BGR frames; returns the codec's name.

    Raises: OutputError: neither PyAV with libx264 nor OpenCV can write the file.
    """
    try:
        import av

        av.codec.Codec("libx264", "w")
    except (ImportError, ValueError):  # PyAV's UnknownCodecError is a ValueError
        return _write_opencv(path, frames, fps, size_hw)
    even_h, even_w = (side - side % 2 for side in size_hw)  # yuv420p has half as many colour samples
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "18", "preset": "medium"})
        stream.width, stream.height, stream.pix_fmt = even_w, even_h, "yuv420p"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:even_h, :even_w]), format="bgr24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return "h264"


def _write_opencv(path: Path, frames: Iterator[np.ndarray], fps: int, size_hw: tuple[int, int]) -> str:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), float(fps), (size_hw[1], size_hw[0]))
    if not writer.isOpened():
        raise OutputError(f"cannot encode {path}: OpenCV has no MPEG-4 encoder here; install PyAV (pip install av).")
    for frame in frames:
        writer.write(frame)
    writer.release()
    return "mpeg4"
