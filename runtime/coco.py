"""Reads annotations in COCO's JSON format, and checks them: the file may come from anywhere.

Shapes: N boxes of one image, K classes. Boxes are xyxy float32 in image px; COCO's own are (x, y, width, height).
Class ids are 0-based indices into class_names, which stand in the order of ascending category ids (gaps are fine).
Ref: https://cocodataset.org/#format-data
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from runtime.errors import AnnotationError, SourceError
from runtime.json_values import is_number, kind_of, shown, stays_inside

MAX_SIDE = 1 << 16  # px; larger images are taken for a mistake in the file


@dataclass(frozen=True)
class CocoImage:
    """One image and its boxes, which lie inside it and have an area.

    image_id: the file's own id. path: where the picture should be (not opened when the annotations are read).
    boxes_xyxy: float32 [N,4]. class_ids: int64 [N], 0..K-1. is_crowd: bool [N].
    areas: float32 [N], px^2, of the object's outline where the file gives it, else of the clipped box.
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

    def read(self) -> np.ndarray:
        """The picture, uint8 [height, width, 3] BGR.

        Raises:
            SourceError: it is missing, no picture, or of another size than the annotations say.
        """
        if not self.path.is_file():
            raise SourceError(f"no image {self.path}: check the image folder that goes with the annotations.")
        try:
            frame = cv2.imread(str(self.path), cv2.IMREAD_COLOR)
        except cv2.error:
            frame = None
        if frame is None:
            raise SourceError(f"cannot read {self.path} as an image: expected JPEG, PNG or another format of OpenCV's.")
        if frame.shape[:2] != (self.height, self.width):
            raise SourceError(
                f"{self.path} is {frame.shape[1]}x{frame.shape[0]} px, but its annotations say "
                f"{self.width}x{self.height}: correct the annotations or use the image they were made for."
            )
        return frame


@dataclass(frozen=True)
class CocoAnnotations:
    """A checked annotation file.

    images: in the file's order, those without boxes too. class_names: [K] by ascending category id.
    category_ids: [K], the file's id of each class. clipped, dropped: how many boxes reached out of their image and were
    cut, and how many had no area (left) and were left out.
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
        """0-based class id -> the file's category id."""
        return self.category_ids[class_id]

    def class_id(self, category_id: int) -> int:
        """The file's category id -> 0-based class id."""
        return self.category_ids.index(category_id)


def read_coco(file: str | Path, image_folder: str | Path | None = None) -> CocoAnnotations:
    """Reads and checks an annotation file; the images are looked for in image_folder, or beside the file.

    Raises:
        AnnotationError: one sentence that names the file and the entry at fault.
    """
    return _Reader(Path(file)).read(Path(file).parent if image_folder is None else Path(image_folder))


class _Reader:
    """Turns one file into CocoAnnotations; its methods raise AnnotationError with the file's name in front."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.clipped = 0
        self.dropped = 0

    def read(self, image_folder: Path) -> CocoAnnotations:
        document = self.load()
        categories = self.categories(document["categories"])
        class_of = {category: index for index, category in enumerate(sorted(categories))}
        images = self.images(document["images"])
        boxes = self.boxes(document["annotations"], images, class_of)
        return CocoAnnotations(
            file=self.file,
            images=tuple(
                _image(image_id, *images[image_id], folder=image_folder, rows=boxes.get(image_id, []))
                for image_id in images
            ),
            class_names=tuple(categories[category] for category in sorted(categories)),
            category_ids=tuple(sorted(categories)),
            clipped=self.clipped,
            dropped=self.dropped,
        )

    def load(self) -> dict[str, list[Any]]:
        """The three lists of the file."""
        try:
            text = self.file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise self.error(f"cannot be read ({reason}); give a JSON file in COCO format") from error
        if not text.strip():
            raise self.error("is empty; give a JSON file in COCO format")
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self.error(f"is no valid JSON ({error}); it may be cut off: copy or export it again") from error
        if not isinstance(document, dict):
            raise self.error(f"holds a {kind_of(document)}, expected an object with images, annotations and categories")
        for key in ("images", "annotations", "categories"):
            if key not in document:
                raise self.error(f'has no "{key}"; a COCO file holds images, annotations and categories')
            if not isinstance(document[key], list):
                raise self.error(f'has a {kind_of(document[key])} as "{key}", expected a list')
        return document

    def categories(self, entries: list[Any]) -> dict[int, str]:
        """Category id -> name."""
        names: dict[int, str] = {}
        for index, entry in enumerate(entries):
            where = f"categories[{index}]"
            category, name = self.whole(entry, "id", where), self.text(entry, "name", where)
            if category in names:
                raise self.error(f"{where}: id {category} appears twice; give every category its own id")
            if name in names.values():
                raise self.error(f'{where}: name "{name}" appears twice; give every category its own name')
            names[category] = name
        if not names:
            raise self.error("has no categories; list at least one")
        return names

    def images(self, entries: list[Any]) -> dict[int, tuple[str, int, int]]:
        """Image id -> (file name, height, width)."""
        images: dict[int, tuple[str, int, int]] = {}
        for index, entry in enumerate(entries):
            where = f"images[{index}]"
            image_id, name = self.whole(entry, "id", where), self.text(entry, "file_name", where)
            height, width = self.whole(entry, "height", where), self.whole(entry, "width", where)
            if image_id in images:
                raise self.error(f"{where}: id {image_id} appears twice; give every image its own id")
            if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
                raise self.error(f"{where}: size {width}x{height}, expected sides from 1 to {MAX_SIDE} px")
            if not stays_inside(name):
                raise self.error(
                    f"{where}: file_name {name!r} leads out of the image folder; use a relative path inside it"
                )
            images[image_id] = (name, height, width)
        return images

    def boxes(
        self, entries: list[Any], images: dict[int, tuple[str, int, int]], class_of: dict[int, int]
    ) -> dict[int, list[tuple[float, ...]]]:
        """Image id -> rows (x1, y1, x2, y2, class id, is crowd, area)."""
        rows: dict[int, list[tuple[float, ...]]] = {}
        seen: set[int] = set()
        for index, entry in enumerate(entries):
            where = f"annotations[{index}]"
            annotation, image_id = self.whole(entry, "id", where), self.whole(entry, "image_id", where)
            category = self.whole(entry, "category_id", where)
            if annotation in seen:
                raise self.error(f"{where}: id {annotation} appears twice; give every annotation its own id")
            if image_id not in images:
                raise self.error(
                    f"{where}: image_id {image_id} is not among the images; add the image or remove the entry"
                )
            if category not in class_of:
                raise self.error(
                    f"{where}: category_id {category} is not among the categories; add it or remove the entry"
                )
            seen.add(annotation)
            crowd = entry.get("iscrowd", 0)
            if crowd not in (0, 1):
                raise self.error(f"{where}: iscrowd is {crowd!r}, expected 0 or 1")
            box = self.inside(self.box(entry, where), images[image_id])
            if box is None:
                continue
            area = self.area(entry, where, box)
            rows.setdefault(image_id, []).append((*box, class_of[category], crowd, area))
        return rows

    def box(self, entry: dict[str, Any], where: str) -> tuple[float, float, float, float]:
        """(x, y, width, height) of one entry."""
        value = self.value(entry, "bbox", where)
        if not isinstance(value, list) or len(value) != 4 or not all(is_number(number) for number in value):
            raise self.error(f"{where}: bbox is {shown(value)}, expected four finite numbers x, y, width, height")
        x, y, width, height = (float(number) for number in value)
        if width < 0 or height < 0:
            raise self.error(f"{where}: bbox {shown(value)} has a negative size; it is x, y, width, height")
        return x, y, width, height

    def inside(
        self, box: tuple[float, float, float, float], image: tuple[str, int, int]
    ) -> tuple[float, float, float, float] | None:
        """Clips (x, y, width, height) to the image; xyxy in float32's precision, or None where no area is left."""
        x, y, box_width, box_height = box
        _, height, width = image
        x1, y1, x2, y2 = max(x, 0.0), max(y, 0.0), min(x + box_width, width), min(y + box_height, height)
        clipped = tuple(float(np.float32(min(max(side, -1.0), MAX_SIDE + 1.0))) for side in (x1, y1, x2, y2))
        if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
            self.dropped += 1
            return None
        if x < 0 or y < 0 or x + box_width > width or y + box_height > height:
            self.clipped += 1
        return clipped  # type: ignore[return-value]

    def area(self, entry: dict[str, Any], where: str, box: tuple[float, float, float, float]) -> float:
        """The entry's area, or its clipped box's."""
        if "area" not in entry:
            return (box[2] - box[0]) * (box[3] - box[1])
        if not is_number(entry["area"]) or not 0 <= float(entry["area"]) < float(np.finfo(np.float32).max):
            raise self.error(f"{where}: area is {shown(entry['area'])}, expected a finite number of at least 0")
        return float(entry["area"])

    def value(self, entry: Any, key: str, where: str) -> Any:
        if not isinstance(entry, dict):
            raise self.error(f"{where} is a {kind_of(entry)}, expected an object")
        if key not in entry:
            raise self.error(f'{where} has no "{key}"; add it')
        return entry[key]

    def whole(self, entry: Any, key: str, where: str) -> int:
        value = self.value(entry, key, where)
        if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 1 << 63:
            raise self.error(f"{where}: {key} is {shown(value)}, expected a whole number")
        return value

    def text(self, entry: Any, key: str, where: str) -> str:
        value = self.value(entry, key, where)
        if not isinstance(value, str) or not value.strip():
            raise self.error(f"{where}: {key} is {shown(value)}, expected a text that is not empty")
        return value

    def error(self, what: str) -> AnnotationError:
        return AnnotationError(f"{self.file} {what}.")


def _image(
    image_id: int, name: str, height: int, width: int, *, folder: Path, rows: list[tuple[float, ...]]
) -> CocoImage:
    table = np.array(rows, np.float64).reshape(-1, 7)
    return CocoImage(
        image_id=image_id,
        file_name=name,
        path=folder / name,
        height=height,
        width=width,
        boxes_xyxy=table[:, :4].astype(np.float32),
        class_ids=table[:, 4].astype(np.int64),
        is_crowd=table[:, 5].astype(bool),
        areas=table[:, 6].astype(np.float32),
    )
