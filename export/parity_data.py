"""The pictures that artifacts are compared on: annotated ones, or any folder of images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from runtime.coco import CocoAnnotations
from runtime.errors import AnnotationError, SourceError, UserError
from runtime.evaluate import evaluation_data
from runtime.images import SUFFIXES, read_image


@dataclass(frozen=True)
class Picture:
    """read: gives the frame, uint8 [height, width, 3] BGR, and raises SourceError where it cannot."""

    name: str
    read: Callable[[], np.ndarray]


@dataclass(frozen=True)
class ParityData:
    """The pictures, and their annotations where there are any."""

    source: str
    pictures: tuple[Picture, ...]
    annotations: CocoAnnotations | None


def load_data(data: Path | None, images_folder: Path | None, count: int) -> ParityData:
    """The first `count` pictures of a COCO file, of a folder with annotations.json, or of a folder of images.

    Args:
        data: None: generated conveyor pictures that training never sees.
        images_folder: of the pictures of a COCO file, where it is not the file's own.

    Raises:
        AnnotationError: the annotations cannot be used, or these pictures have none.
        SourceError: pictures are missing, or a folder holds none.
        UserError: a folder of pictures for data that is a folder of pictures itself.
    """
    if data is not None and data.is_dir() and not (data / "annotations.json").is_file():
        if images_folder is not None:
            raise UserError(
                f"--images-folder {images_folder} came with {data}, which has no annotations.json: "
                "leave it out, or give the annotation file as --data."
            )
        return _folder(data, count)
    found = evaluation_data(data, images_folder)
    annotations = dataclasses.replace(found, images=found.images[:count])
    if not any((~image.is_crowd).any() for image in annotations):
        raise AnnotationError(
            f"the first {len(annotations)} images of {annotations.file} have no boxes: AP needs at least one; "
            "give more of them with --count."
        )
    pictures = tuple(Picture(image.file_name, image.read) for image in annotations)
    return ParityData(str(annotations.file), pictures, annotations)


def _folder(folder: Path, count: int) -> ParityData:
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise SourceError(f"{folder} holds no picture and no annotations.json: expected {', '.join(SUFFIXES)} files.")
    pictures = tuple(Picture(path.name, partial(read_image, path)) for path in paths[:count])
    return ParityData(str(folder), pictures, None)
