"""Reads annotations in Pascal VOC's format: one XML file per image, lists of images in ImageSets/Main.

Pixels are counted from 1 in VOC, and a box includes both its first and its last pixel. Ours are sides between pixels,
so (xmin, ymin, xmax, ymax) becomes (xmin - 1, ymin - 1, xmax, ymax): a box of the whole picture is (0, 0, W, H).

Splits: "trainval" of a folder like VOC2007; "train+val" joins two; of a folder with several years (VOCdevkit),
"2007_trainval+2012_trainval". A folder without ImageSets is read whole.
Class ids are 0-based. Classes: those of classes.txt or labels.txt (one name per line) where there is one, VOC's 20 in a
folder of a VOC year that has no others, else all names in the annotations, in alphabetical order.
Ref: http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/devkit_doc.html
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element

from runtime.annotated_images import MAX_SIDE, BoxRow, CocoAnnotations, CocoImage, image_from_rows
from runtime.annotation_faults import AnnotationFault, DuplicateBoxes, Findings
from runtime.class_names import CLASS_FILES, read_class_names
from runtime.json_values import shown
from runtime.progress import progress
from runtime.voc_folders import VOC_CLASSES, YEAR, VocEntry, unreadable, voc_entries, voc_years
from runtime.xml_tree import XmlError, read_xml


@dataclass(frozen=True)
class VocObject:
    """One object as written. corners: xmin, ymin, xmax, ymax, finite."""

    where: str
    name: str
    corners: tuple[float, float, float, float]
    is_difficult: bool


@dataclass(frozen=True)
class VocImage:
    """What one XML file says; its boxes are not yet looked at."""

    image_hw: tuple[int, int]
    objects: tuple[VocObject, ...]


def read_voc(
    folder: str | Path,
    split: str | None = None,
    image_folder: str | Path | None = None,
    findings: Findings | None = None,
) -> CocoAnnotations:
    """Reads and checks the annotations of a split, or of all images where there are no splits.

    Args:
        folder: of a year (VOC2007), of several years (VOCdevkit), or of XML files.
        image_folder: where the images are; None: JPEGImages, or beside the annotations.
        findings: where faults go; None: the first is raised.
    Raises:
        AnnotationError: one sentence that names the file and the entry at fault.
    """
    folder, findings = Path(folder), findings or Findings()
    entries = voc_entries(folder, split, None if image_folder is None else Path(image_folder), findings)
    read = [_read_one(entry, findings) for entry in progress(entries, len(entries), "reading annotations")]
    names = (one.name for image in read if image is not None for one in image.objects)
    classes = _class_names(folder, entries, set(names))
    class_of = {name: index for index, name in enumerate(classes)}
    images = [
        _checked(number, entry, image, class_of, findings)
        for number, (entry, image) in enumerate(zip(entries, read), start=1)
        if image is not None
    ]
    numbers = tuple(range(1, len(classes) + 1))
    return CocoAnnotations(folder, tuple(images), classes, numbers, findings.clipped, findings.dropped)


def _read_one(entry: VocEntry, findings: Findings) -> VocImage | None:
    """What the XML file says; None if it is at fault and faults are collected."""
    file = entry.annotation
    with findings:
        if not os.path.isfile(file):  # unlike Path's, False for names that are too long
            raise AnnotationFault(
                "image-without-annotation", file, "is not there; add it, or take the image off the list"
            )
        try:
            root = read_xml(file)
        except XmlError as error:
            raise AnnotationFault(*unreadable(file, f"{error}; copy or export it again")) from error
        size = root.find("size")
        if root.tag != "annotation" or size is None:
            raise AnnotationFault(*unreadable(file, "has no <annotation> with a <size>; give Pascal VOC's format"))
        height, width = (_side(size, side, file) for side in ("height", "width"))
        objects: list[VocObject] = []
        for index, element in enumerate(root.findall("object")):
            with findings:
                objects.append(_object(element, f"object[{index}]", file))
        return VocImage((height, width), tuple(objects))
    return None


def _object(element: Element, where: str, file: Path) -> VocObject:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise AnnotationFault("wrong-value", file, f"{where} has no <name>; add it")
    difficult = (element.findtext("difficult") or "0").strip()
    if difficult not in ("0", "1"):
        raise AnnotationFault("wrong-value", file, f"{where}: difficult is {shown(difficult)}, expected 0 or 1")
    box = element.find("bndbox")
    if box is None:
        raise AnnotationFault("wrong-value", file, f"{where} has no <bndbox>; add it")
    corners = tuple(_number(box.findtext(tag)) for tag in ("xmin", "ymin", "xmax", "ymax"))
    if not all(math.isfinite(corner) for corner in corners):
        raise AnnotationFault(
            "box-not-finite", file, f"{where}: expected finite numbers as xmin, ymin, xmax and ymax of <bndbox>"
        )
    return VocObject(where, name, corners, difficult == "1")  # type: ignore[arg-type]


def _checked(number: int, entry: VocEntry, image: VocImage, class_of: dict[str, int], findings: Findings) -> CocoImage:
    """The image with the boxes that are left of its objects."""
    rows: list[BoxRow] = []
    twice = DuplicateBoxes(findings)
    for one in image.objects:
        file, box, class_id = entry.annotation, None, None
        with findings:
            if one.name not in class_of:
                known = ", ".join(list(class_of)[:5])
                raise AnnotationFault(
                    "unknown-class", file, f"{one.where}: {shown(one.name)} is no class of {known}, ..."
                )
            class_id = class_of[one.name]
        with findings:
            xmin, ymin, xmax, ymax = one.corners
            if xmax < xmin or ymax < ymin:
                raise AnnotationFault(
                    "negative-size", file, f"{one.where}: the box {one.corners} ends before it starts"
                )
            box = findings.clipped_box((xmin - 1.0, ymin - 1.0, xmax, ymax), image.image_hw, file, one.where)
        if box is not None and class_id is not None:
            twice.add((box, class_id), file, one.where)
            rows.append(BoxRow(box, class_id, (box[2] - box[0]) * (box[3] - box[1]), is_difficult=one.is_difficult))
    return image_from_rows(number, entry.file_name, entry.picture, image.image_hw, rows)


def _class_names(folder: Path, entries: Sequence[VocEntry], names: set[str]) -> tuple[str, ...]:
    """The classes, by the rule at the top; `names` are those of the images that were read."""
    for name in CLASS_FILES:
        if (folder / name).is_file():
            return read_class_names(folder / name)
    homes = {entry.annotation.parent for entry in entries}
    if names <= set(VOC_CLASSES) and (YEAR.fullmatch(Path(os.path.abspath(folder)).name) or voc_years(folder)):
        return VOC_CLASSES
    unread = {path for home in homes for path in home.glob("*.xml")} - {entry.annotation for entry in entries}
    for path in progress(sorted(unread), len(unread), "collecting class names", "file"):
        names |= _names_in(path)
    if not names:
        raise AnnotationFault(*unreadable(folder, "has no objects; list the class names in classes.txt, one per line"))
    return tuple(sorted(names))


def _names_in(path: Path) -> set[str]:
    """The class names of a file of another split; what is wrong with it is that split's concern."""
    try:
        root = read_xml(path)
    except XmlError:
        return set()
    found: Iterable[str] = ((element.findtext("name") or "").strip() for element in root.findall("object"))
    return {name for name in found if name}


def _side(size: Element, side: str, file: Path) -> int:
    value = _number(size.findtext(side))
    if not (1 <= value <= MAX_SIDE and value == int(value)):
        text = shown(size.findtext(side))
        raise AnnotationFault("wrong-value", file, f"has the {side} {text}, expected whole px from 1 to {MAX_SIDE}")
    return int(value)


def _number(text: str | None) -> float:
    """A number from the file, NaN for what is none."""
    try:
        return float(text) if text is not None else math.nan
    except ValueError:
        return math.nan
