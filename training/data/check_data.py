"""Looks for every fault of a data set: in its annotations, its pictures, and between training and validation data."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from runtime.annotated_images import CocoAnnotations, CocoImage
from runtime.annotation_faults import Fault, Findings
from runtime.annotations import read_annotations
from runtime.images import SUFFIXES
from runtime.voc_folders import annotation_folder, is_voc, voc_years
from training.data.check_pictures import check_pictures

UNMENTIONED = "image-without-annotation"


@dataclass
class CheckedSet:
    """One part of the data. name: "train" or "val". annotations: what is sound in them; None if they cannot be read.

    digests: image id -> digest of its picture, where that can be read.
    """

    name: str
    annotations: CocoAnnotations | None
    faults: list[Fault] = field(default_factory=list)
    digests: dict[int, str] = field(default_factory=dict)

    @property
    def images(self) -> tuple[CocoImage, ...]:
        """The images that the annotations list."""
        return () if self.annotations is None else self.annotations.images

    def readable(self) -> list[CocoImage]:
        """Those whose picture can be read and has the size that the annotations say."""
        at_fault = {fault.file for fault in self.faults if fault.kind == "wrong-size"}
        return [image for image in self.images if image.image_id in self.digests and str(image.path) not in at_fault]


def read_set(name: str, path: Path, images: Path | None, split: str | None) -> CheckedSet:
    """Reads annotations and goes on behind every fault; the pictures are not opened yet."""
    findings = Findings(lenient=True)
    annotations = None
    with findings:
        annotations = read_annotations(path, images, split, usual_split=name, findings=findings)
    part = CheckedSet(name, annotations, findings.faults)
    if annotations is not None and not any((~image.is_crowd).any() for image in annotations):
        message = (
            f"has no object that is not a crowd (images: {len(annotations)}); check that its label files are found"
        )
        part.faults.append(Fault("no-objects", str(annotations.file), message))
    return part


def check_images(part: CheckedSet, workers: int) -> None:
    """Opens the pictures of a part and adds what is wrong with them."""
    first_at: dict[Path, CocoImage] = {}
    unique: list[CocoImage] = []
    for image in part.images:
        if first_at.setdefault(image.path, image) is image:
            unique.append(image)
        else:
            part.faults.append(Fault("duplicate-entry", str(image.path), "is listed a second time; keep one entry"))
    first_with: dict[str, CocoImage] = {}
    for image, picture in zip(unique, check_pictures(unique, workers), strict=True):
        part.faults += picture.faults
        if picture.digest is None:
            continue
        part.digests[image.image_id] = picture.digest
        first = first_with.setdefault(picture.digest, image)
        if first is not image:
            part.faults.append(Fault("duplicate-image", str(image.path), f"shows the same as {first.path}"))


def check_folders(parts: Sequence[CheckedSet]) -> None:
    """Adds images that no annotation mentions and annotations without an image, where the format's folders tell.

    COCO: images beside those listed, in no part. VOC: the contents of JPEGImages against Annotations, whatever the
    split. YOLO's reader has looked for both.
    """
    seen = {image.path for part in parts for image in part.images}
    homes: set[Path] = set()
    for part in parts:
        source = None if part.annotations is None else part.annotations.file
        if source is not None and source.suffix.lower() == ".json":
            folders = sorted({image.path.parent for image in part.images})
            unlisted = [path for folder in folders for path in _pictures(folder) if path not in seen]
            seen.update(unlisted)
            part.faults += [Fault(UNMENTIONED, str(path), _hint(source, parts)) for path in unlisted]
        elif source is not None and source.is_dir() and is_voc(source):
            for home in voc_years(source).values() or [source]:
                if home not in homes:
                    part.faults += _check_voc(home, seen, parts)
                homes.add(home)


def check_between(train: CheckedSet, val: CheckedSet) -> None:
    """Adds to `val` the images it shares with `train`, and classes that differ."""
    if train.annotations is None or val.annotations is None:
        return
    own, other = val.annotations.class_names, train.annotations.class_names
    if own != other:
        message = f"has the classes {', '.join(own)}, but the training data has {', '.join(other)}"
        val.faults.append(Fault("unknown-class", str(val.annotations.file), message))
    paths = {image.path.resolve() for image in train.images}
    shown = {train.digests[image.image_id]: image for image in train.images if image.image_id in train.digests}
    for image in val.images:
        same = shown.get(val.digests.get(image.image_id, ""))
        if image.path.resolve() in paths:
            val.faults.append(Fault("train-and-val", str(image.path), "is in the training and in the validation data"))
        elif same is not None:
            message = f"in the validation data shows the same as {same.path} in the training data"
            val.faults.append(Fault("train-and-val", str(image.path), message))


def _pictures(folder: Path) -> list[Path]:
    if not os.path.isdir(folder):  # unlike Path's, False for names that are too long
        return []
    found = (path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))
    return sorted(path for path in found if path.is_file())


def _hint(source: Path, parts: Sequence[CheckedSet]) -> str:
    hint = "" if len(parts) > 1 else "; if the validation data does, give --val too"
    return f"lies beside images of {source}, which does not list it{hint}"


def _check_voc(home: Path, listed: set[Path], parts: Sequence[CheckedSet]) -> list[Fault]:
    """What of the folders Annotations and JPEGImages has no counterpart in the other; what a split lists is known."""
    annotations = annotation_folder(home)
    labels = {path.stem: path for path in sorted(annotations.glob("*.xml"))}
    pictures = {path.stem: path for place in ("JPEGImages", "images", ".") for path in _pictures(home / place)}
    known = {path.stem for path in listed}
    known |= {Path(fault.file).stem for part in parts for fault in part.faults if fault.kind == UNMENTIONED}
    without_label = sorted(pictures.keys() - labels.keys() - known)
    without_picture = sorted(labels.keys() - pictures.keys() - known)
    message = f"has no annotation file in {annotations}; add one, without <object> if it shows none"
    found = [Fault(UNMENTIONED, str(pictures[name]), message) for name in without_label]
    message = "has no image; add it, or remove the file"
    return found + [Fault("label-without-image", str(labels[name]), message) for name in without_picture]
