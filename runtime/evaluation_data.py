"""The annotated images that a command measures on."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from runtime.annotations import read_annotations
from runtime.coco import CocoAnnotations
from runtime.errors import SourceError, UserError
from runtime.evaluation import held_out_images
from runtime.metrics import check_objects

DATA_HELP = (
    "annotations: a COCO file or a folder with annotations.json, a Pascal VOC folder, or YOLO's data.yaml "
    "(default: 200 generated conveyor images that training never sees)"
)
OPTIONS = ("--data", "--images", "--split")  # what they are called; calibration has other names for some
USUAL_SPLIT = "val"
IMAGES_HELP = "folder of the images (default: the annotations' own)"
SPLIT_HELP = "part of the data: test, 2007_test, val (default: val, where YOLO or COCO folders have one so called)"


def add_data_arguments(
    group: argparse._ActionsContainer, data_help: str = DATA_HELP, options: Sequence[str] = OPTIONS
) -> None:
    """The data set to look at, as three options of a command line."""
    for option, kind, text in zip(options, (Path, Path, str), (data_help, IMAGES_HELP, SPLIT_HELP), strict=True):
        group.add_argument(option, type=kind, help=text)


def evaluation_data(
    data: Path | None, images: Path | None, split: str | None = None, options: Sequence[str] = OPTIONS
) -> CocoAnnotations:
    """The annotated images to measure on, all there.

    Args:
        data, images, split: as runtime.annotations.read_annotations takes them; data None: the demo's held-out images.
        options: what the three are called.

    Raises:
        AnnotationError: the annotations cannot be used.
        SourceError: images are missing.
    """
    if data is None:
        return held_out_images()
    annotations = read_annotations(data, images, split, usual_split=USUAL_SPLIT)
    check_objects(annotations)
    missing = [image.path for image in annotations if not os.path.isfile(image.path)]
    if missing:
        raise SourceError(
            f"{len(missing)} of {len(annotations)} images of {data} are missing, the first is {missing[0]}: "
            f"give their folder with {options[1]}."
        )
    return annotations


def check_data_options(
    data: Path | None, images: Path | None, split: str | None, options: Sequence[str] = OPTIONS
) -> None:
    """The folder of the images and the split belong to the data.

    Raises:
        UserError: one came without it.
    """
    if data is not None:
        return
    if images is not None:
        raise UserError(f"{options[1]} {images} came without {options[0]}: give the annotations of these images too.")
    if split is not None:
        raise UserError(f"{options[2]} {split} came without {options[0]}: give the data set that it is a part of.")


def described(annotations: CocoAnnotations, split: str | None) -> str:
    """Where annotations came from, for a report: `VOCdevkit (2007_test)`."""
    return str(annotations.file) if split is None else f"{annotations.file} ({split})"
