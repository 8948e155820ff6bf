"""Reads annotations in COCO's JSON format, and checks them: the file may come from anywhere.

Shapes: N boxes of one image, K classes. Boxes are xyxy float32 in image px; COCO's own are (x, y, width, height).
Class ids are 0-based indices into class_names, which stand in the order of ascending category ids (gaps are fine).
Ref: https://cocodataset.org/#format-data
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from runtime.annotated_images import MAX_SIDE, BoxRow, CocoAnnotations, CocoImage, image_from_rows
from runtime.annotation_faults import AnnotationFault, DuplicateBoxes, Findings
from runtime.json_values import is_number, kind_of, shown, stays_inside

__all__ = ["MAX_SIDE", "CocoAnnotations", "CocoImage", "read_coco"]

ImageEntry = tuple[str, int, int]  # file name, height, width
TWICE = "duplicate-id"
UNPRINTABLE = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # half a surrogate pair cannot be encoded
LARGEST_AREA = float(np.finfo(np.float32).max)


def read_coco(
    file: str | Path, image_folder: str | Path | None = None, findings: Findings | None = None
) -> CocoAnnotations:
    """Reads and checks an annotation file; the images are looked for in image_folder, or beside the file.

    Args:
        findings: where faults go; None: the first is raised.
    Raises:
        AnnotationError: one sentence that names the file and the entry at fault.
    """
    reader = _Reader(Path(file), findings or Findings())
    return reader.read(Path(file).parent if image_folder is None else Path(image_folder))


class _Reader:
    """Turns one file into CocoAnnotations; its methods raise AnnotationFault with the file's name in front."""

    def __init__(self, file: Path, findings: Findings) -> None:
        self.file = file
        self.findings = findings

    def read(self, image_folder: Path) -> CocoAnnotations:
        document = self.load()
        categories = self.categories(document["categories"])
        class_of = {category: index for index, category in enumerate(sorted(categories))}
        images = self.images(document["images"])
        rows = self.objects(document["annotations"], images, class_of)
        return CocoAnnotations(
            file=self.file,
            images=tuple(
                image_from_rows(image_id, entry[0], image_folder / entry[0], entry[1:], rows.get(image_id, []))
                for image_id, entry in images.items()
                if entry is not None
            ),
            class_names=tuple(categories[category] for category in sorted(categories)),
            category_ids=tuple(sorted(categories)),
            clipped=self.findings.clipped,
            dropped=self.findings.dropped,
        )

    def load(self) -> dict[str, list[Any]]:
        """The three lists of the file."""
        try:
            text = self.file.read_text(encoding="utf-8-sig")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise self.unreadable(f"cannot be read ({reason}); give a JSON file in COCO format") from error
        if not text.strip():
            raise self.unreadable("is empty; give a JSON file in COCO format")
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self.unreadable(f"is no valid JSON ({error}); it may be cut off: copy or export it again") from error
        if not isinstance(document, dict):
            raise self.unreadable(
                f"holds a {kind_of(document)}, expected an object with images, annotations and categories"
            )
        for key in ("images", "annotations", "categories"):
            if key not in document:
                raise self.unreadable(f'has no "{key}"; a COCO file holds images, annotations and categories')
            if not isinstance(document[key], list):
                raise self.unreadable(f'has a {kind_of(document[key])} as "{key}", expected a list')
        return document

    def categories(self, entries: list[Any]) -> dict[int, str]:
        """Category id -> name."""
        names: dict[int, str] = {}
        for index, entry in enumerate(entries):
            with self.findings:
                where = f"categories[{index}]"
                category, name = self.whole(entry, "id", where), self.text(entry, "name", where)
                if category in names:
                    raise self.error(f"{where}: id {category} appears twice; give every category its own id", TWICE)
                if name in names.values():
                    raise self.error(f'{where}: name "{name}" appears twice; give every category its own name', TWICE)
                names[category] = name
        if not names:
            raise self.unreadable("has no categories; list at least one")
        return names

    def images(self, entries: list[Any]) -> dict[int, ImageEntry | None]:
        """Image id -> its entry; None for one at fault, when faults are collected."""
        images: dict[int, ImageEntry | None] = {}
        for index, entry in enumerate(entries):
            with self.findings:
                where = f"images[{index}]"
                image_id = self.whole(entry, "id", where)
                if image_id in images:
                    raise self.error(f"{where}: id {image_id} appears twice; give every image its own id", TWICE)
                images[image_id] = None  # until the rest of it is found to be good
                images[image_id] = self.image(entry, where)
        return images

    def image(self, entry: dict[str, Any], where: str) -> ImageEntry:
        name = self.text(entry, "file_name", where)
        height, width = self.whole(entry, "height", where), self.whole(entry, "width", where)
        if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
            raise self.error(f"{where}: size {width}x{height}, expected sides from 1 to {MAX_SIDE} px")
        if not stays_inside(name):
            raise self.error(
                f"{where}: file_name {name!r} leads out of the image folder; use a relative path inside it"
            )
        return name, height, width

    def objects(
        self, entries: list[Any], images: dict[int, ImageEntry | None], class_of: dict[int, int]
    ) -> dict[int, list[BoxRow]]:
        """Image id -> its objects."""
        rows: dict[int, list[BoxRow]] = {}
        twice: dict[int, DuplicateBoxes] = {}
        seen: set[int] = set()
        for index, entry in enumerate(entries):
            where = f"annotations[{index}]"
            image_id, row = None, None
            if not isinstance(entry, dict):
                with self.findings:
                    raise self.error(f"{where} is a {kind_of(entry)}, expected an object")
                continue
            with self.findings:
                self.own_id(entry, where, seen)
            with self.findings:
                image_id = self.image_of(entry, where, images)
            with self.findings:
                row = self.object(entry, where, None if image_id is None else images[image_id], class_of)
            if image_id is not None and row is not None:
                rows.setdefault(image_id, []).append(row)
                twice.setdefault(image_id, DuplicateBoxes(self.findings)).add(row, self.file, where)
        return rows

    def own_id(self, entry: Any, where: str, seen: set[int]) -> None:
        annotation = self.whole(entry, "id", where)
        if annotation in seen:
            raise self.error(f"{where}: id {annotation} appears twice; give every annotation its own id", TWICE)
        seen.add(annotation)

    def image_of(self, entry: dict[str, Any], where: str, images: dict[int, ImageEntry | None]) -> int:
        image_id = self.whole(entry, "image_id", where)
        if image_id not in images:
            raise self.error(
                f"{where}: image_id {image_id} is not among the images; add the image or remove the entry",
                "label-without-image",
            )
        return image_id

    def object(
        self, entry: dict[str, Any], where: str, image: ImageEntry | None, class_of: dict[int, int]
    ) -> BoxRow | None:
        """One annotation; None if nothing of its box is left, or, when faults are collected, its class is unknown."""
        class_id, box, crowd = None, None, self.crowd(entry, where)
        with self.findings:
            class_id = self.class_of(entry, where, class_of)
        if image is None:  # a fault of its own
            return None
        x, y, width, height = self.box(entry, where)
        box = self.findings.clipped_box((x, y, x + width, y + height), image[1:], self.file, where)
        if box is None or class_id is None:
            return None
        return BoxRow(box, class_id, self.area(entry, where, box), crowd)

    def class_of(self, entry: dict[str, Any], where: str, class_of: dict[int, int]) -> int:
        category = self.whole(entry, "category_id", where)
        if category not in class_of:
            raise self.error(
                f"{where}: category_id {category} is not among the categories; add it or remove the entry",
                "unknown-class",
            )
        return class_of[category]

    def crowd(self, entry: dict[str, Any], where: str) -> bool:
        crowd = entry.get("iscrowd", 0)
        if crowd not in (0, 1):
            raise self.error(f"{where}: iscrowd is {crowd!r}, expected 0 or 1")
        return bool(crowd)

    def box(self, entry: dict[str, Any], where: str) -> tuple[float, float, float, float]:
        """(x, y, width, height) of one entry."""
        value = self.value(entry, "bbox", where)
        if not isinstance(value, list) or len(value) != 4 or not all(is_number(number) for number in value):
            raise self.error(
                f"{where}: bbox is {shown(value)}, expected four finite numbers x, y, width, height", "box-not-finite"
            )
        x, y, width, height = (float(number) for number in value)
        if width < 0 or height < 0:
            raise self.error(
                f"{where}: bbox {shown(value)} has a negative size; it is x, y, width, height", "negative-size"
            )
        return x, y, width, height

    def area(self, entry: dict[str, Any], where: str, box: tuple[float, float, float, float]) -> float:
        """The entry's area, or its clipped box's."""
        if "area" not in entry:
            return (box[2] - box[0]) * (box[3] - box[1])
        if not is_number(entry["area"]) or not 0 <= float(entry["area"]) < LARGEST_AREA:
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
        if UNPRINTABLE.search(value):
            raise self.error(f"{where}: {key} is {shown(value)}, expected a text without control characters")
        return value

    def unreadable(self, what: str) -> AnnotationFault:
        return self.error(what, "unreadable-annotations")

    def error(self, what: str, kind: str = "wrong-value") -> AnnotationFault:
        return AnnotationFault(kind, self.file, what)
