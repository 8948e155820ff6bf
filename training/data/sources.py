"""The data that a command line names: samples to train on, annotated images to measure AP on."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runtime.annotation_faults import Fault
from runtime.annotations import declares_split, read_annotations
from runtime.coco import CocoAnnotations
from runtime.conveyor import CLASS_NAMES
from runtime.errors import AnnotationError, SourceError, UserError
from runtime.evaluation import check_class_names, held_out_images
from runtime.metrics import check_objects
from training.data.annotated import AnnotatedDataset
from training.data.augmentation import add_augmentation_arguments, augmentation_of
from training.data.check_pictures import check_pictures
from training.data.conveyor import ConveyorDataset

MOST_WORKERS = 4  # processes that open the validation images
FORMATS = "COCO JSON, Pascal VOC folder, YOLO data.yaml"


def add_data_arguments(group: argparse._ArgumentGroup) -> None:
    """Training and validation data, and its augmentation, as options of a command line."""
    group.add_argument(
        "--data", default="conveyor", help=f"annotations ({FORMATS}), or `conveyor` for generated images"
    )
    group.add_argument("--split", help="part of --data to train on: trainval, 2007_trainval+2012_trainval, train")
    group.add_argument("--images", type=Path, help="folder of the images (default: the annotations' own)")
    group.add_argument("--val", help="annotations to measure AP on, or `conveyor` for the 200 held-out images")
    group.add_argument("--val-split", help="part of --val, or of --data where --val is not given: val, test")
    group.add_argument("--val-images", type=Path, help="folder of the validation images")
    group.add_argument("--use-difficult", action="store_true", help="train on objects that VOC marks as difficult")
    group.add_argument(
        "--count", type=int, default=6000, help="with conveyor: how many images to generate an epoch from"
    )
    add_augmentation_arguments(group)


def training_samples(
    arguments: argparse.Namespace, class_names: Sequence[str] | None = None
) -> tuple[Any, tuple[str, ...]]:
    """The data set and its class names; if `class_names` are given, they must be the same.

    Raises:
        AnnotationError: the annotations cannot be used; it says how to list all their faults.
        SourceError: images are missing.
        UserError: an augmentation that cannot be used, or too few images or too low a seed to generate from.
    """
    if arguments.data == "conveyor":
        _refuse_with_generated(arguments, "data", "images", "split")
        for name, least in (("count", 1), ("seed", 0)):
            if getattr(arguments, name) < least:
                raise UserError(f"--{name} is {getattr(arguments, name)}: expected {least} or more.")
        generated = ConveyorDataset(arguments.count, arguments.seed)
        generated.augmentation = augmentation_of(arguments, "both")
        return generated, CLASS_NAMES
    annotations = _read(arguments.data, arguments.images, arguments.split, "train")
    dataset = AnnotatedDataset(
        annotations,
        class_names,
        use_difficult=arguments.use_difficult,
        augmentation=augmentation_of(arguments, "horizontal"),
    )
    return dataset, dataset.class_names


def validation_data(arguments: argparse.Namespace, class_names: Sequence[str]) -> CocoAnnotations:
    """Annotated images to measure AP on, of a detector of `class_names`.

    All images are opened once: AP is measured on all of them, so one that cannot be read would end the first epoch.

    Raises:
        AnnotationError: the annotations cannot be used; it says how to list all their faults. Or they have no objects,
            or other classes than `class_names`, whose order does not matter.
        SourceError: images are missing, unreadable or of another size.
        UserError: own data without held-out images: AP on the training images would mean nothing.
    """
    validation = _validation_data(arguments)
    check_objects(validation)
    check_class_names(class_names, validation)
    return validation


def _validation_data(arguments: argparse.Namespace) -> CocoAnnotations:
    """validation_data, its objects and classes unseen."""
    if arguments.val == "conveyor" or (arguments.val is None and arguments.data == "conveyor"):
        _refuse_with_generated(arguments, "data" if arguments.val is None else "val", "val_images", "val_split")
        return held_out_images()
    if arguments.val is not None:
        return _read(arguments.val, arguments.val_images, arguments.val_split, "val")
    if arguments.val_split is not None or declares_split(Path(arguments.data), "val"):
        return _read(arguments.data, arguments.val_images or arguments.images, arguments.val_split, "val")
    raise UserError(
        f"--data {arguments.data} came without --val: give annotations of held-out images, or name a part of "
        "--data with --val-split."
    )


def _refuse_with_generated(arguments: argparse.Namespace, source: str, *names: str) -> None:
    for name in names:
        if getattr(arguments, name) is not None:
            option = f"--{name.replace('_', '-')}"
            raise UserError(
                f"{option} {getattr(arguments, name)} means nothing with the generated images of --{source} conveyor: "
                f"omit it, or name annotations by --{source}."
            )


def _read(data: str, images: Path | None, split: str | None, purpose: str) -> CocoAnnotations:
    """Reads strictly, and says what was mended. purpose: "train" or "val", which are usual names of splits too."""
    words = ["--data", data, *(["--images", str(images)] if images else []), *(["--split", split] if split else [])]
    command = shlex.join(["python", "training/data/validate.py", *words])
    try:
        annotations = read_annotations(data, images, split, usual_split=purpose)
    except AnnotationError as error:
        raise AnnotationError(f"{error} All faults are listed by `{command}`.") from error
    if annotations.clipped or annotations.dropped:
        print(
            f"{data}: {annotations.clipped} boxes reach out of their image and are cut, {annotations.dropped} have no "
            f"area in it and are left out: `{command}` lists them"
        )
    faults = _missing(annotations) if purpose == "train" else _unusable(annotations)
    if faults:
        raise SourceError(
            f"{len(faults)} of {len(annotations)} images of {data} cannot be used, the first: {faults[0]} All faults "
            f"are listed by `{command}`."
        )
    return annotations


def _missing(annotations: CocoAnnotations) -> list[Fault]:
    """Training images that are not there; what else is wrong with one shows when it is its turn, and stops nothing."""
    return [
        Fault("missing-image", str(image.path), "is not there")
        for image in annotations
        if not os.path.isfile(image.path)
    ]


def _unusable(annotations: CocoAnnotations) -> list[Fault]:
    """Validation images that cannot be opened."""
    pictures = check_pictures(annotations.images, min(MOST_WORKERS, os.cpu_count() or 1))
    return [picture.hindrance for picture in pictures if picture.hindrance is not None]
