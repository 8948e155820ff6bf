"""Where the images and label files of a YOLO data set are, which of them a split has, and its class names.

A data.yaml names `path` (default: its own folder) and, relative to it, the images of each split: a folder, a list of
folders, or text files that list images. Without one, a folder has images/ and labels/, with a folder per split in
each or none, or a folder per split with images/ and labels/ in it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from runtime.annotation_faults import AnnotationFault, Findings
from runtime.class_names import CLASS_FILES, read_class_names
from runtime.images import SUFFIXES
from runtime.yolo_yaml import YoloFile

USUAL_SPLITS = ("train", "val", "valid", "test")
YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")


@dataclass(frozen=True)
class YoloImages:
    """The images of a split. root: what their names are relative to."""

    root: Path
    pictures: tuple[Path, ...]
    class_names: tuple[str, ...]


def yaml_file(path: Path) -> Path | None:
    """The data.yaml that a path is or has in it; None if there is none."""
    if path.suffix.lower() in (".yaml", ".yml") and not path.is_dir():
        return path
    return next((path / name for name in YAML_NAMES if (path / name).is_file()), None)


def is_yolo(path: Path) -> bool:
    """Whether a path looks like a YOLO data set."""
    return has_yolo_files(path) or any((path / name).is_file() for name in CLASS_FILES)


def has_yolo_files(path: Path) -> bool:
    """Whether there is what only YOLO data sets have: a data.yaml, or the folders `images` and `labels` together."""
    labels = [*path.glob("labels"), *path.glob("*/labels")]
    return yaml_file(path) is not None or any((folder.parent / "images").is_dir() for folder in labels)


def yolo_images(path: Path, split: str | None, findings: Findings) -> YoloImages:
    """The images of a split, sorted by name within each folder.

    Raises:
        AnnotationFault: no such split, none named where there are several, no images, or no class names.
    """
    file = yaml_file(path)
    if file is not None:
        content = YoloFile(file)
        root = file.parent / content.path
        if split is None and len(content.splits) == 1:
            split = next(iter(content.splits))
        if split not in content.splits:
            raise _unreadable(file, f"{_no_split(split)}; it has {', '.join(content.splits) or 'none'}")
        places = [_existing(root, place, file) for place in content.splits[split]]
        names = content.names
    else:
        root, places, names = path, [_image_folder(path, split)], _names(path)
    pictures: dict[Path, None] = {}
    for place in places:
        found = _in_folder(place, findings) if place.is_dir() else _in_list(place)
        for picture in found:
            if picture in pictures:
                findings.note("duplicate-entry", picture, f"is listed a second time in {place}")
            pictures[picture] = None
    if not pictures:
        raise _unreadable(
            places[0] if places else path, f"has no images; expected files with a name in {', '.join(SUFFIXES)}"
        )
    return YoloImages(root, tuple(pictures), names)


def label_file(picture: Path) -> Path:
    """The text file that belongs to an image: its last folder `images` becomes `labels`."""
    parts = list(picture.parent.parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return Path(*parts) / f"{picture.stem}.txt"


def _existing(root: Path, place: str, file: Path) -> Path:
    """A folder or list that data.yaml names. Roboflow writes ../train/images for train/images."""
    for candidate in (root / place, root / place.removeprefix("../")):
        if os.path.exists(candidate):  # unlike Path's, False for names that are too long
            return candidate
    raise _unreadable(file, f"names {root / place}, which is not there; correct `path` or the split")


def split_folders(path: Path, split: str) -> tuple[Path, Path]:
    """Where the images of a split can be in a data set without data.yaml."""
    return path / "images" / split, path / split / "images"


def _image_folder(path: Path, split: str | None) -> Path:
    """The images of a data set without data.yaml; splits are never read together, as one may be for validation."""
    parts = [name for name in USUAL_SPLITS if (path / "images" / name).is_dir()]
    if split is None and parts:
        raise _unreadable(path, f"{_no_split(split)}; it has {', '.join(parts)}")
    candidates = (path / "images",) if split is None else split_folders(path, split)
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise _unreadable(path, f"{_no_split(split)}: expected the folder {' or '.join(str(one) for one in candidates)}")


def _names(path: Path) -> tuple[str, ...]:
    for name in CLASS_FILES:
        for folder in (path, path / "labels"):
            if (folder / name).is_file():
                return read_class_names(folder / name)
    raise _unreadable(path, "has labels, but no class names; list them in classes.txt, one per line, or in data.yaml")


def _in_folder(folder: Path, findings: Findings) -> list[Path]:
    """All images in a folder and below; notes label files that have none."""
    found = [path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]
    pictures = sorted((path for path in found if path.is_file()), key=lambda path: path.relative_to(folder).as_posix())
    if findings.lenient:
        expected = {label_file(picture) for picture in pictures}
        labels = label_file(folder / "any").parent
        for path in sorted(set(labels.rglob("*.txt")) - expected):
            if path.name not in CLASS_FILES:
                findings.note("label-without-image", path, f"has no image in {folder}; add it, or remove the file")
    return pictures


def _in_list(file: Path) -> list[Path]:
    """The images that a text file lists, one per line, relative to the file's folder."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise _unreadable(file, f"cannot be read ({reason}); give a list of images, one per line") from error
    return [file.parent / line.strip() for line in lines if line.strip()]


def _no_split(split: str | None) -> str:
    return "came without a split" if split is None else f"has no split {split!r}"


def _unreadable(file: Path, what: str) -> AnnotationFault:
    return AnnotationFault("unreadable-annotations", file, what)
