"""Reads annotations of whichever format is there: COCO, Pascal VOC or YOLO text."""

from __future__ import annotations

from pathlib import Path

from runtime.annotated_images import CocoAnnotations
from runtime.annotation_faults import AnnotationFault, Findings
from runtime.coco import read_coco
from runtime.voc import read_voc
from runtime.voc_folders import is_voc
from runtime.yolo import read_yolo
from runtime.yolo_folders import has_yolo_files, is_yolo, split_folders, yaml_file
from runtime.yolo_yaml import YoloFile

COCO_NAMES = ("annotations.json", "_annotations.coco.json")


def read_annotations(
    path: str | Path,
    images: str | Path | None = None,
    split: str | None = None,
    *,
    usual_split: str | None = None,
    findings: Findings | None = None,
) -> CocoAnnotations:
    """Reads and checks annotations; what `path` is decides the format.

    Args:
        path: a COCO JSON file or a folder with annotations.json; a Pascal VOC folder (of a year, of several years, or
            of XML files); a YOLO data.yaml, or a folder with it, or with images/, labels/ and classes.txt.
        images: folder of the images, where it is not the annotations' own; not for YOLO.
        split: which part; VOC: "trainval", "train+val", of several years "2007_trainval+2012_trainval", or a folder of
            XML files so called; YOLO: "train", "val" or "test"; COCO: a folder so called, with annotations.json.
        usual_split: the split where none was named, but the data has one so called; see declares_split.
        findings: where faults go; None: the first is raised.

    Raises:
        AnnotationError: one sentence that names the file and the entry at fault, or that no format was recognised.
    """
    path = Path(path)
    split = chosen_split(path, split, usual_split)
    coco, voc = _coco_file(path, split), _voc_folder(path, split)
    if coco is not None:
        return read_coco(coco, images, findings)
    if voc is not None:
        return read_voc(*voc, images, findings)
    if is_yolo(path):
        if images is not None:
            raise AnnotationFault(
                *_wrong(path, f"finds its images by YOLO's rule, so the folder {images} means nothing")
            )
        return read_yolo(path, split, findings)
    received = "is in none of the known formats" if split is None else f"has no split {split!r} in a known format"
    received = received if path.exists() else "is not there"
    raise AnnotationFault(
        *_wrong(
            path,
            f"{received}; give a COCO JSON file or a folder with annotations.json, a Pascal VOC folder with "
            "Annotations, or YOLO's data.yaml",
        )
    )


def is_annotated(path: Path, usual_split: str | None = None) -> bool:
    """Whether `path` is in one of the formats; a folder of images is not, if all it has of YOLO's is a classes.txt.

    Raises:
        AnnotationError: there is a data.yaml that cannot be read.
    """
    split = chosen_split(path, None, usual_split)
    if _coco_file(path, split) is not None or _voc_folder(path, split) is not None:
        return True
    return has_yolo_files(path) or (is_yolo(path) and (path / "images").is_dir())


def annotated_parts(path: Path) -> list[str]:
    """The folders in `path` that are COCO data sets of their own, by name."""
    return sorted(folder.name for folder in path.iterdir() if folder.is_dir() and _coco_file(folder, None) is not None)


def chosen_split(path: Path, split: str | None, usual_split: str | None) -> str | None:
    """`split`, or where none was named the usual one, if the data declares it.

    Raises:
        AnnotationError: as of declares_split.
    """
    if split is None and usual_split is not None and declares_split(path, usual_split):
        return usual_split
    return split


def declares_split(path: Path, split: str) -> bool:
    """Whether the data declares a split of this name: in its data.yaml, as a COCO folder in a plain one, or as YOLO's
    images/<split> or <split>/images.

    Raises:
        AnnotationError: there is a data.yaml that cannot be read.
    """
    file = yaml_file(path)
    if file is not None and file.is_file():
        return split in YoloFile(file).splits
    if not path.is_dir() or _coco_file(path, None) is not None:
        return False
    if _coco_file(path, split) is not None:
        return True
    return not is_voc(path) and is_yolo(path) and any(place.is_dir() for place in split_folders(path, split))


def _coco_file(path: Path, split: str | None) -> Path | None:
    """The COCO file that `path` and `split` stand for; None where the data is in another format."""
    if path.suffix.lower() == ".json" and not path.is_dir():
        if split is not None:
            raise AnnotationFault(
                *_wrong(path, f"is one COCO file, which has no split {split!r}; give the split's own file")
            )
        return path
    folder = path if split is None else path / split
    return next((folder / name for name in COCO_NAMES if (folder / name).is_file()), None)


def _voc_folder(path: Path, split: str | None) -> tuple[Path, str | None] | None:
    """The VOC folder, and its split, that `path` and `split` stand for; None where the data is in another format."""
    if path.is_dir() and is_voc(path):
        return path, split
    return (path / split, None) if split is not None and is_voc(path / split) else None


def _wrong(path: Path, message: str) -> tuple[str, Path, str]:
    return "unreadable-annotations", path, message
