"""Where the images and annotation files of a Pascal VOC folder are, and which of them a split names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from runtime.annotation_faults import AnnotationFault, Findings
from runtime.images import SUFFIXES
from runtime.json_values import shown, stays_inside

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
YEAR = re.compile(r"VOC(\d{4})")
PART_OF_SPLIT = re.compile(r"(?P<split>[A-Za-z0-9_-]+)")
PART_OF_YEARS = re.compile(r"(?:voc_)?(?P<year>\d{4})_(?P<split>[A-Za-z0-9_-]+)")


@dataclass(frozen=True)
class VocEntry:
    """One image of a split: its annotation file, and where the picture is, or should be."""

    annotation: Path
    picture: Path
    file_name: str  # of the picture, relative to the folder that was given


def is_voc(folder: Path) -> bool:
    """Whether a folder looks like one of VOC's."""
    if (folder / "ImageSets" / "Main").is_dir() or voc_years(folder):
        return True
    return any(annotation_folder(folder).glob("*.xml"))


def voc_years(folder: Path) -> dict[str, Path]:
    """The folders of years in a devkit, like {"2007": .../VOC2007}."""
    found = sorted(path for path in folder.glob("VOC[0-9][0-9][0-9][0-9]") if path.is_dir())
    return {path.name[3:]: path for path in found}


def annotation_folder(folder: Path) -> Path:
    """Where the XML files are: in Annotations, or in the folder itself."""
    return folder / "Annotations" if (folder / "Annotations").is_dir() else folder


def voc_entries(folder: Path, split: str | None, image_folder: Path | None, findings: Findings) -> list[VocEntry]:
    """The images that `split` names, in its order; one that several parts of a joined split name comes once.

    Raises:
        AnnotationFault: there is no such split, or none was named where there are several.
    """
    years = voc_years(folder)
    if split is None:
        if years or (folder / "ImageSets" / "Main").is_dir():
            raise AnnotationFault(*unreadable(folder, f"came without a split; name one: {_splits(folder, years)}"))
        names = sorted(path.stem for path in annotation_folder(folder).glob("*.xml"))
        if not names:
            raise AnnotationFault(*unreadable(folder, "holds no XML files; give a folder in Pascal VOC's format"))
        only = _Home(folder, folder, image_folder)
        return [only.entry(name) for name in names]
    entries: dict[Path, VocEntry] = {}
    for part in split.split("+"):
        match = (PART_OF_YEARS if years else PART_OF_SPLIT).fullmatch(part.strip())
        if match is None or (years and match["year"] not in years):
            raise AnnotationFault(*unreadable(folder, f"has no split {part!r}; it has {_splits(folder, years)}"))
        path = years[match["year"]] if years else folder
        home = _Home(path, folder, image_folder)
        for name in _listed(path, match["split"], _splits(folder, years), findings):
            entry = home.entry(name)
            entries.setdefault(entry.annotation, entry)
    return list(entries.values())


def _listed(home: Path, split: str, known: str, findings: Findings) -> list[str]:
    """Names of the images in ImageSets/Main/<split>.txt."""
    file = home / "ImageSets" / "Main" / f"{split}.txt"
    if not file.is_file():
        raise AnnotationFault(*unreadable(home, f"has no split {split!r} (no {file}); it has {known}"))
    names: dict[str, None] = {}  # in the file's order
    for number, line in enumerate(_text(file).splitlines(), start=1):
        words = line.split()
        if len(words) > 1:
            raise AnnotationFault(
                "wrong-value",
                file,
                f"line {number}: {shown(line)}, expected the name of an image alone; "
                "lists of one class are not read: name a split of all, like trainval",
            )
        if words and not stays_inside(words[0]):
            raise AnnotationFault("wrong-value", file, f"line {number}: {shown(line)} leads out of the folder")
        if words and words[0] in names:
            findings.note("duplicate-entry", file, f"line {number}: {shown(line)} is listed a second time")
        names.update(dict.fromkeys(words))
    if not names:
        raise AnnotationFault(*unreadable(file, "lists no images; name another split"))
    return list(names)


class _Home:
    """One folder of annotations and its pictures; `folder` is what names are relative to."""

    def __init__(self, home: Path, folder: Path, image_folder: Path | None) -> None:
        self.annotations = annotation_folder(home)
        self.named_from = image_folder or folder
        beside = [home / "JPEGImages", home / "images", self.annotations]
        self.places = [place for place in ([image_folder] if image_folder else beside) if place.is_dir()]
        self.pictures: dict[str, Path] = {}  # by their names without suffix
        for place in self.places:
            for path in sorted(place.iterdir()):
                if path.suffix.lower() in SUFFIXES:
                    self.pictures.setdefault(path.stem, path)

    def entry(self, name: str) -> VocEntry:
        """Of the image `name`; where its picture is not there, it should be a .jpg."""
        place = self.places[0] if self.places else self.named_from
        picture = self.pictures.get(name, place / f"{name}.jpg")
        inside = picture.is_relative_to(self.named_from)
        file_name = picture.relative_to(self.named_from).as_posix() if inside else str(picture)
        return VocEntry(self.annotations / f"{name}.xml", picture, file_name)


def _splits(folder: Path, years: dict[str, Path]) -> str:
    """The splits that a folder has, for a sentence."""
    homes = [(f"{year}_", home) for year, home in years.items()] or [("", folder)]
    found = [
        f"{prefix}{path.stem}"
        for prefix, home in homes
        for path in sorted((home / "ImageSets" / "Main").glob("*.txt"))
        if "_" not in path.stem or path.stem.split("_")[0] not in VOC_CLASSES  # not the lists of one class, train_val
    ]
    return ", ".join(found[:12]) or "none, as there is no ImageSets/Main"


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise AnnotationFault(*unreadable(file, f"cannot be read ({reason})")) from error


def unreadable(file: Path, message: str) -> tuple[str, Path, str]:
    """Arguments of an AnnotationFault."""
    return "unreadable-annotations", file, message
