"""Writes generated scenes to disk as a COCO data set, with all cores, and goes on where an interrupted run stopped.

A folder holds images/NNNNNN.jpg, annotations.json (written last, so that a folder with it is complete) and
generator.json, which says what the folder is: another data set is never written over it. While it is being written,
parts/ keeps the annotations of the finished chunks.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2

from runtime.conveyor import CLASS_NAMES
from runtime.conveyor.scene import FRAME_HW, Scene, render_scene
from runtime.errors import OutputError, RunError
from runtime.files import atomic_output, check_writable

HELD_OUT_FIRST = 1_000_000_000  # validation pictures start here in every stream; training ones stay below
GENERATOR = "edgercnn.conveyor 1"  # raise the number when the same (seed, index) gives another picture
CHUNK = 25  # pictures per task
ENCODING = {"jpg": [cv2.IMWRITE_JPEG_QUALITY, 95], "png": [cv2.IMWRITE_PNG_COMPRESSION, 3]}


@dataclass(frozen=True)
class Recipe:
    """What a data set consists of: pictures first .. first + count - 1 of the stream `seed`."""

    count: int
    seed: int
    first: int
    height: int
    width: int
    image_format: str
    generator: str = GENERATOR


def write_dataset(
    folder: str | Path,
    count: int,
    seed: int,
    *,
    first: int = 0,
    size_hw: tuple[int, int] = FRAME_HW,
    image_format: str = "jpg",
    workers: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Path:
    """Writes `count` pictures with boxes; does nothing if the folder already holds exactly them.

    Args:
        folder: made if missing; may hold an interrupted run of the same data set.
        first: index in the stream of the first picture; HELD_OUT_FIRST for validation pictures.
        image_format: "jpg" (quality 95) or "png".
        workers: processes; None: one per core.
        progress: called with the number of pictures that were finished since the last call.
    Returns: the path of annotations.json; images lie in images/ and file names are relative to the folder.
    Raises:
        OutputError: the folder cannot be written, or holds something else.
        RunError: a worker process was killed.
        ValueError: count below 1, negative seed, unknown format.
    """
    if count < 1 or seed < 0 or first < 0 or image_format not in ENCODING:
        raise ValueError(
            f"need count >= 1, seed and first >= 0, jpg or png; got {count}, {seed}, {first}, {image_format}"
        )
    folder = Path(folder)
    recipe = Recipe(count, seed, first, *size_hw, image_format)
    _claim(folder, recipe)
    annotations = folder / "annotations.json"
    if annotations.is_file() and all((folder / _file_name(recipe, k)).is_file() for k in range(count)):
        if progress is not None:
            progress(count)
        return annotations
    chunks = [(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
    try:
        (folder / "images").mkdir(exist_ok=True)
        (folder / "parts").mkdir(exist_ok=True)
        _run(partial(_write_chunk, folder, recipe), chunks, workers or os.cpu_count() or 1, progress)
        _merge(folder, recipe, chunks)
    except OSError as error:
        raise OutputError(
            f"cannot write into {folder}: {error.strerror or error}; free space or choose another."
        ) from error
    return annotations


def coco_document(
    images: list[dict[str, Any]], annotations: list[dict[str, Any]], info: dict[str, Any]
) -> dict[str, Any]:
    """The COCO JSON object of conveyor pictures; numbers the annotations from 1."""
    for number, annotation in enumerate(annotations, start=1):
        annotation["id"] = number
    categories = [{"id": k + 1, "name": name, "supercategory": "part"} for k, name in enumerate(CLASS_NAMES)]
    return {"info": info, "images": images, "annotations": annotations, "categories": categories}


def coco_entries(scene: Scene, image_id: int) -> list[dict[str, Any]]:
    """The scene's boxes as COCO annotations (x, y, width, height in image px), not yet numbered."""
    entries = []
    for box, label, visible in zip(
        scene.boxes_xyxy.tolist(), scene.labels.tolist(), scene.visible.tolist(), strict=True
    ):
        x1, y1, x2, y2 = box
        entries.append(
            {
                "image_id": image_id,
                "category_id": label + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": 0,
                "visible": round(visible, 4),
            }
        )
    return entries


def write_json(path: Path, document: object) -> None:
    """Writes JSON whole or not at all."""
    with atomic_output(path) as temporary:
        temporary.write_text(json.dumps(document), encoding="utf-8")


def _claim(folder: Path, recipe: Recipe) -> None:
    """Marks the folder as this data set's; refuses one that holds something else."""
    marker = folder / "generator.json"
    check_writable(marker)
    if marker.is_file():
        try:
            found = json.loads(marker.read_text(encoding="utf-8"))
        except ValueError:
            found = None
        if found != asdict(recipe):
            raise OutputError(f"{folder} holds another data set ({found}); choose another folder or delete it.")
    elif any(folder.iterdir()):
        raise OutputError(f"{folder} holds files that are no conveyor data set; choose an empty or new folder.")
    else:
        write_json(marker, asdict(recipe))


def _run(
    task: Callable[[tuple[int, int]], int],
    chunks: list[tuple[int, int]],
    workers: int,
    progress: Callable[[int], object] | None,
) -> None:
    """Runs the task for every chunk, in this process if one is enough."""
    if workers == 1 or len(chunks) == 1:
        for chunk in chunks:
            done = task(chunk)
            if progress is not None:
                progress(done)
        return
    # spawn: forking a process that has used OpenCV's or PyTorch's threads can hang
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(chunks)), mp_context=context, initializer=_start_worker)
    try:
        futures: list[Future[int]] = [pool.submit(task, chunk) for chunk in chunks]
        for future in as_completed(futures):
            done = future.result()
            if progress is not None:
                progress(done)
    except BrokenProcessPool as error:
        raise RunError("a worker process was killed (memory?): run again with fewer workers to go on.") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """One core for each worker; Ctrl-C is the main process's: the chunks under way are finished and kept."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)


def _write_chunk(folder: Path, recipe: Recipe, chunk: tuple[int, int]) -> int:
    """Writes the pictures from chunk[0] to before chunk[1], then their annotations; skips a finished chunk."""
    part = _part_file(folder, chunk)
    numbers = range(*chunk)
    if part.is_file():
        return len(numbers)
    images, annotations = [], []
    for number in numbers:
        scene = render_scene(recipe.seed, recipe.first + number, (recipe.height, recipe.width))
        name = _file_name(recipe, number)
        encoded, data = cv2.imencode(f".{recipe.image_format}", scene.frame, ENCODING[recipe.image_format])
        assert encoded
        with atomic_output(folder / name) as temporary:
            temporary.write_bytes(data.tobytes())
        images.append({"id": number + 1, "file_name": name, "height": recipe.height, "width": recipe.width})
        annotations += coco_entries(scene, number + 1)
    write_json(part, {"images": images, "annotations": annotations})
    return len(numbers)


def _merge(folder: Path, recipe: Recipe, chunks: list[tuple[int, int]]) -> None:
    """Joins the chunks' annotations into annotations.json and removes them."""
    images, annotations = [], []
    for chunk in chunks:
        part = json.loads(_part_file(folder, chunk).read_text(encoding="utf-8"))
        images += part["images"]
        annotations += part["annotations"]
    info = {"description": "generated conveyor scenes", **asdict(recipe)}
    write_json(folder / "annotations.json", coco_document(images, annotations, info))
    shutil.rmtree(folder / "parts")


def _file_name(recipe: Recipe, number: int) -> str:
    return f"images/{number:06d}.{recipe.image_format}"


def _part_file(folder: Path, chunk: tuple[int, int]) -> Path:
    return folder / "parts" / f"{chunk[0]:06d}-{chunk[1]:06d}.json"
