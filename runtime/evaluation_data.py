"""The annotated images that a command measures on."""

from __future__ import annotations

import os
from pathlib import Path

from runtime.annotations import read_annotations
from runtime.coco import CocoAnnotations
from runtime.errors import SourceError
from runtime.evaluation import held_out_images
from runtime.metrics import check_objects

DATA_HELP = (
    "annotations: a COCO file or a folder with annotations.json, a Pascal VOC folder, or YOLO's data.yaml "
    "(default: 200 generated conveyor images that training never sees)"
)
SPLIT_HELP = "part of the data: test, 2007_test, val (default: val, where YOLO or COCO folders have one so called)"


def evaluation_data(data: Path | None, images: Path | None, split: str | None = None) -> CocoAnnotations:
    """The annotated images to measure on, all there.

    Args:
        data, images, split: as runtime.annotations.read_annotations takes them; data None: the demo's held-out images.

    Raises:
        AnnotationError: the annotations cannot be used.
        SourceError: images are missing.
    """
    if data is None:
        return held_out_images()
    annotations = read_annotations(data, images, split, usual_split="val")
    check_objects(annotations)
    missing = [image.path for image in annotations if not os.path.isfile(image.path)]
    if missing:
        raise SourceError(
            f"{len(missing)} of {len(annotations)} images of {data} are missing, the first is {missing[0]}: "
            "give their folder with --images."
        )
    return annotations
