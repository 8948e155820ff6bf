"""Runs a detector, of whatever artifact, over annotated images and measures what it found.

The images can be shared between processes, and the numbers are those of one process, bit for bit: each of `world` runs
`detect_images(..., shard=(rank, world))`, and one of them measures `merge_shards` of all answers. Whole batches are
dealt out, so that every image is in the batch, and on the canvas, that it has in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from runtime.coco import CocoAnnotations, read_coco
from runtime.conveyor.dataset import GENERATOR, HELD_OUT_FIRST, write_dataset
from runtime.detections import Detections
from runtime.errors import AnnotationError
from runtime.files import cache_folder, locked
from runtime.metrics import Evaluation, Record, evaluate_records, load_pycocotools
from runtime.progress import progress, progress_bar

UNUSED_CLASS = "N/A"  # torchvision's name for the labels that COCO never used: its weights have ten of them
HELD_OUT_SEED = 1007  # of the pictures that the demo's detector is judged by; training never sees them,
HELD_OUT_COUNT = 200  # even with this seed: they lie beyond HELD_OUT_FIRST, where no training picture is
CALIBRATION_SEED = 2011  # of the pictures that ranges are measured on: from the part of the stream that training has,
CALIBRATION_COUNT = 300  # so that what is measured on the held-out ones is no reward for having seen them


def held_out_images() -> CocoAnnotations:
    """The demo's validation set, 200 generated conveyor pictures; drawn into the cache at the first use.

    Raises:
        OutputError: the cache cannot be written.
    """
    return _drawn("held-out", HELD_OUT_COUNT, HELD_OUT_SEED, HELD_OUT_FIRST)


def calibration_pictures() -> CocoAnnotations:
    """300 generated conveyor pictures, none of them held out, to calibrate the demo with; drawn at the first use.

    Raises:
        OutputError: the cache cannot be written.
    """
    return _drawn("calibration", CALIBRATION_COUNT, CALIBRATION_SEED, 0)


def evaluate_detector(
    detector: Callable[[Sequence[np.ndarray]], list[Detections]], annotations: CocoAnnotations, *, batch: int = 1
) -> Evaluation:
    """Run a detector over all annotated images and measure what it found.

    Args:
        detector: uint8 [height, width, 3] BGR frames in, one Detections per frame out.
        annotations: with at least one object; classes are matched by name.
        batch: images per call.

    Raises:
        AnnotationError: no objects, or classes other than the detector's.
        SourceError: an image is missing or no image.
        BackendUnavailableError: pycocotools is not installed.
    """
    load_pycocotools()  # before the work, not after it
    return evaluate_detections(detect_images(detector, annotations, batch=batch), annotations)


def detect_images(
    detector: Callable[[Sequence[np.ndarray]], list[Detections]],
    annotations: CocoAnnotations,
    *,
    batch: int = 1,
    title: str = "evaluating",
    shard: tuple[int, int] = (0, 1),
) -> list[Detections]:
    """The detector's answers, one per image, with a progress bar; raises as `evaluate_detector`.

    Args:
        shard: (rank, world), 0 <= rank < world: of the batches 0, 1, 2, ... of all images, those numbered
            rank, rank + world, ... and no others; none if there are fewer. By default all images, in their order.
    """
    rank, world = shard
    assert 0 <= rank < world, shard
    starts = range(rank * batch, len(annotations), world * batch)
    found: list[Detections] = []
    for start in progress(starts, len(starts), title, "image" if batch == 1 else "batch"):
        answers = detector([image.read() for image in annotations.images[start : start + batch]])
        if not found:
            check_class_names(answers[0].class_names, annotations)
        found += answers
    return found


def shard_images(count: int, shard: tuple[int, int], batch: int = 1) -> list[int]:
    """Which of `count` images, 0 to count - 1, are those of `shard` (rank, world); see `detect_images`."""
    rank, world = shard
    starts = range(rank * batch, count, world * batch)
    return [index for start in starts for index in range(start, min(start + batch, count))]


def merge_shards(parts: Sequence[Sequence[Detections]], *, batch: int = 1) -> list[Detections]:
    """What `detect_images` gives for all images, from what it gave for the shards of rank 0, 1, ..., world - 1.

    Args:
        batch: that of `detect_images`.
    """
    lengths = [len(part) for part in parts]
    world = len(parts)
    assert lengths == [len(shard_images(sum(lengths), (rank, world), batch)) for rank in range(world)], lengths
    starts = range(0, max(lengths), batch)
    return [found for start in starts for part in parts for found in part[start : start + batch]]


def check_class_names(class_names: Sequence[str], annotations: CocoAnnotations) -> None:
    """See that a detector's classes and those of the data are the same; their order does not matter.

    Raises:
        AnnotationError: naming what one has and the other lacks.
    """
    lacking = [name for name in annotations.class_names if name not in class_names]
    extra = [name for name in class_names if name not in annotations.class_names and name != UNUSED_CLASS]
    if lacking or extra:
        parts = [f"the detector does not know {_listed(lacking)}"] if lacking else []
        parts += [f"the data does not have {_listed(extra)}"] if extra else []
        raise AnnotationError(
            f"{annotations.file} has other classes than the detector: {' and '.join(parts)}; "
            "give data with the classes that the detector was trained on."
        )


def coco_records(detections: Sequence[Detections], annotations: CocoAnnotations) -> list[Record]:
    """Detections, one item per image, as entries of a COCO results file: bbox is (x, y, width, height) in image px."""
    records: list[Record] = []
    for image, found in zip(annotations.images, detections, strict=True):
        categories = _category_ids(found.class_names, annotations)
        for box, score, class_id in zip(found.boxes_xyxy.astype(np.float64), found.scores, found.class_ids):
            category = categories[class_id]
            if category is not None:
                bbox = [round(float(value), 4) for value in (*box[:2], *(box[2:] - box[:2]))]
                scored = round(float(score), 6)
                records.append({"image_id": image.image_id, "category_id": category, "bbox": bbox, "score": scored})
    return records


def evaluate_detections(detections: Sequence[Detections], annotations: CocoAnnotations) -> Evaluation:
    """Metrics of detections, one item per image of `annotations`; raises as `evaluate_detector`."""
    return evaluate_records(coco_records(detections, annotations), annotations)


def _drawn(name: str, count: int, seed: int, first: int) -> CocoAnnotations:
    """Pictures first .. first + count - 1 of the stream `seed`, from the cache or drawn into it."""
    folder = cache_folder() / f"{GENERATOR.replace(' ', '-')}-{name}"
    with locked(folder), progress_bar(count, f"drawing {name} images") as advance:
        file = write_dataset(folder, count, seed, first=first, progress=advance)
    return read_coco(file)


def _category_ids(class_names: Sequence[str], annotations: CocoAnnotations) -> list[int | None]:
    """The data's category id of each class of a detector; None for names that the data does not have."""
    known = dict(zip(annotations.class_names, annotations.category_ids, strict=True))
    return [known.get(name) for name in class_names]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
