"""The pictures that artifacts are compared on: annotated ones, or a plain folder of images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from runtime.coco import CocoAnnotations
from runtime.errors import AnnotationError
from runtime.evaluation_data import USUAL_SPLIT, described, evaluation_data
from runtime.images import read_image
from runtime.plain_images import plain_images


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


def load_data(data: Path | None, images: Path | None, split: str | None = None, *, count: int) -> ParityData:
    """The first `count` pictures of annotated data, in its order, or of a plain folder of images, by name.

    Args:
        data, images, split: as runtime.annotations.read_annotations takes them, or data is a plain folder; data None:
            generated conveyor pictures that training never sees.

    Raises:
        AnnotationError: the annotations cannot be used, or these pictures have none.
        SourceError: pictures are missing, or a folder holds none.
        UserError: a folder of pictures for data that is a folder of pictures itself.
    """
    paths = None if data is None else plain_images(data, images, split, usual_split=USUAL_SPLIT)
    if paths is not None:
        return ParityData(
            str(data), tuple(Picture(path.name, partial(read_image, path)) for path in paths[:count]), None
        )
    found = evaluation_data(data, images, split)
    annotations = dataclasses.replace(found, images=found.images[:count])
    if not any((~image.is_crowd).any() for image in annotations):
        raise AnnotationError(
            f"the first {len(annotations)} images of {annotations.file} have no boxes: AP needs at least one; "
            "give more of them with --count."
        )
    pictures = tuple(Picture(image.file_name, image.read) for image in annotations)
    return ParityData(described(annotations, split), pictures, annotations)
