"""Plain folders of images, where a command takes annotated data as well."""

from __future__ import annotations

from pathlib import Path

from runtime.annotations import annotated_parts, is_annotated
from runtime.errors import SourceError, UserError
from runtime.images import SUFFIXES

ANNOTATIONS = "annotations (a COCO file or a folder with annotations.json, a Pascal VOC folder, YOLO's data.yaml)"
PICTURES_HELP = f"a folder of images, or {ANNOTATIONS}"


def plain_images(
    data: Path,
    images: Path | None = None,
    split: str | None = None,
    *,
    usual_split: str | None = None,
    below: bool = False,
) -> list[Path] | None:
    """The images of a plain folder, sorted by name, hidden files left out; None where annotations were named.

    Args:
        data, images, split, usual_split: as runtime.annotations.read_annotations takes them; a plain folder has no
            splits, so a `split` stands for annotations.
        below: take the images in subfolders too.

    Raises:
        SourceError: `data` is not there, a file in no format that is known, or a folder without images.
        UserError: `images` came with a plain folder, or it is one of data sets, whose splits would be mixed.
        AnnotationError: a data.yaml cannot be read.
    """
    if split is not None or is_annotated(data, usual_split):
        return None
    if not data.is_dir():
        received = "is no folder" if data.exists() else "does not exist"
        raise SourceError(f"{data} {received}: expected {PICTURES_HELP}.")
    if images is not None:
        raise UserError(
            f"{data} is a plain folder of images, without annotations, so an image folder ({images}) beside it means "
            "nothing: omit it."
        )
    if below and (parts := annotated_parts(data)):
        raise UserError(f"{data} has annotations in {', '.join(parts)}: name one of them by --split.")
    found = data.rglob("*") if below else data.iterdir()
    named = [path for path in found if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]
    files = sorted((path for path in named if path.is_file()), key=lambda path: path.relative_to(data).as_posix())
    if not files:
        raise SourceError(
            f"{data} has no images: expected files with a name in {', '.join(SUFFIXES)}, or {ANNOTATIONS}."
        )
    return files
