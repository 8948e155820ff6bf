"""Annotated images, whatever format their annotations came in: what all readers give.

Shapes: N boxes of one image, K classes. Boxes are xyxy float32 in image px, sides between pixels: a box from the first
to the third pixel of a row has x1 = 0 and x2 = 3.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from runtime.errors import SourceError
from runtime.images import read_image

MAX_SIDE = 1 << 16  # px; larger images are taken for a mistake in the file


@dataclass(frozen=True)
class CocoImage:
    """One image and its boxes, which lie inside it and have an area.

    image_id: the file's own id, or numbered from 1. path: where the picture should be (not opened when the annotations
    are read). boxes_xyxy: float32 [N,4]. class_ids: int64 [N], 0..K-1. is_crowd: bool [N].
    areas: float32 [N], px^2, of the object's outline where the file gives it, else of the clipped box.
    is_difficult: bool [N], Pascal VOC's mark; None stands for no object, as in COCO, and becomes an array.
    """

    image_id: int
    file_name: str
    path: Path
    height: int
    width: int
    boxes_xyxy: np.ndarray
    class_ids: np.ndarray
    is_crowd: np.ndarray
    areas: np.ndarray
    is_difficult: np.ndarray = field(default=None)  # type: ignore[arg-type]

    def __post_init__(self) -> None:
        if self.is_difficult is None:
            object.__setattr__(self, "is_difficult", np.zeros(len(self.class_ids), bool))

    def read(self) -> np.ndarray:
        """The picture, uint8 [height, width, 3] BGR.

        Raises:
            SourceError: it is missing, cut off, no picture, or of another size than the annotations say.
        """
        if not os.path.isfile(self.path):  # unlike Path's, False for names that are too long
            raise SourceError(f"no image {self.path}: check the image folder that goes with the annotations.")
        frame = read_image(self.path)
        if frame.shape[:2] != (self.height, self.width):
            raise SourceError(
                f"{self.path} is {frame.shape[1]}x{frame.shape[0]} px, but its annotations say "
                f"{self.width}x{self.height}: correct the annotations or use the image they were made for."
            )
        return frame


@dataclass(frozen=True)
class CocoAnnotations:
    """The checked annotations of a data set.

    file: the annotation file, or the folder that the annotations are in. images: in the file's order, those without
    boxes too. class_names: [K], of COCO by ascending category id. category_ids: [K], the format's own number of each
    class. clipped, dropped: how many boxes reached out of their image and were cut, and how many had no area (left) and
    were left out.
    """

    file: Path
    images: tuple[CocoImage, ...]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    clipped: int
    dropped: int

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[CocoImage]:
        return iter(self.images)

    def category_id(self, class_id: int) -> int:
        """0-based class id -> the format's own category id."""
        return self.category_ids[class_id]

    def class_id(self, category_id: int) -> int:
        """The format's own category id -> 0-based class id."""
        return self.category_ids.index(category_id)


class BoxRow(NamedTuple):
    """One checked object of an image."""

    box_xyxy: tuple[float, float, float, float]
    class_id: int
    area: float
    is_crowd: bool = False
    is_difficult: bool = False


def image_from_rows(
    image_id: int, file_name: str, path: Path, image_hw: tuple[int, int], rows: Sequence[BoxRow]
) -> CocoImage:
    """Puts the objects of one image into arrays."""
    return CocoImage(
        image_id=image_id,
        file_name=file_name,
        path=path,
        height=image_hw[0],
        width=image_hw[1],
        boxes_xyxy=np.array([row.box_xyxy for row in rows], np.float32).reshape(-1, 4),
        class_ids=np.array([row.class_id for row in rows], np.int64),
        is_crowd=np.array([row.is_crowd for row in rows], bool),
        areas=np.array([row.area for row in rows], np.float32),
        is_difficult=np.array([row.is_difficult for row in rows], bool),
    )
