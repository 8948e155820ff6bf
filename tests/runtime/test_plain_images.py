"""What is a plain folder of images, and what is annotated data that merely has images in it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from runtime.annotations import read_annotations
from runtime.errors import EdgeRcnnError, SourceError, UserError
from runtime.evaluation_data import check_data_options
from runtime.plain_images import plain_images
from tests.helpers_data import Truth, voc_xml, write_coco, write_pictures, write_voc, write_yolo

NAMES = ("bolt", "gear")
TRUTHS = [Truth(name, 20, 30, ((2.0, 3.0, 9.0, 9.0, "gear", False),)) for name in "abc"]


def plain(folder: Path) -> Path:
    """b.png and a.png, those of a subfolder, and what is no image."""
    write_pictures(folder, TRUTHS[1::-1])
    write_pictures(folder / "more", TRUTHS)
    (folder / "._a.png").write_bytes(b"what macOS leaves beside a file")
    (folder / "notes.txt").write_text("no picture")
    (folder / "folder.png").mkdir()
    return folder


def names_of(folder: Path, **options) -> list[str] | None:
    found = plain_images(folder, **options)
    return None if found is None else [path.relative_to(folder).as_posix() for path in found]


def test_images_of_a_plain_folder_come_by_name(tmp_path):
    folder = plain(tmp_path / "photos")
    assert names_of(folder) == ["a.png", "b.png"]
    assert names_of(folder, below=True) == ["a.png", "b.png", "more/a.png", "more/b.png", "more/c.png"]
    assert names_of(folder, usual_split="val") == ["a.png", "b.png"]


def test_class_names_beside_images_do_not_make_a_data_set(tmp_path):
    """As labelling tools leave them; the reader of YOLO's format wants images in a folder of their own."""
    folder = plain(tmp_path / "photos")
    (folder / "classes.txt").write_text("bolt\n")
    assert names_of(folder) == ["a.png", "b.png"]
    (folder / "images").mkdir()
    assert names_of(folder) is None


def test_a_folder_called_labels_does_not_make_a_data_set_of_photos(tmp_path):
    folder = plain(tmp_path / "photos")
    (folder / "labels").mkdir()
    (folder / "more" / "labels").mkdir()
    assert names_of(folder) == ["a.png", "b.png"]
    (folder / "more" / "images").mkdir()
    with pytest.raises(EdgeRcnnError, match="came without a split"):
        read_annotations(folder)


def coco_parts(folder: Path) -> Path:
    """A folder of data sets, one of which is called val."""
    write_coco(folder / "train", TRUTHS, NAMES)
    return write_coco(folder / "val", TRUTHS[:1], NAMES).parents[1]


def xml_folder(folder: Path) -> Path:
    write_pictures(folder, TRUTHS)
    (folder / "a.xml").write_text(voc_xml(TRUTHS[0]))
    return folder


def yolo_folder(folder: Path) -> Path:
    yaml = write_yolo(folder, {"train": TRUTHS, "val": TRUTHS[:1]}, NAMES)
    shutil.move(yaml, folder.parent / "elsewhere.yaml")
    return folder


ANNOTATED = {
    "a COCO file": lambda folder: write_coco(folder, TRUTHS, NAMES),
    "a COCO folder": lambda folder: write_coco(folder, TRUTHS, NAMES).parent,
    "a folder of COCO folders": coco_parts,
    "a COCO file that is not there": lambda folder: folder / "none.json",
    "a VOC folder": lambda folder: write_voc(folder, {"train": TRUTHS}),
    "a VOC folder of years": lambda folder: write_voc(folder / "VOC2007", {"train": TRUTHS}).parent,
    "XML files beside images": xml_folder,
    "data.yaml": lambda folder: write_yolo(folder, {"train": TRUTHS}, NAMES),
    "a folder with data.yaml": lambda folder: write_yolo(folder, {"train": TRUTHS}, NAMES).parent,
    "images and labels": yolo_folder,
}


@pytest.mark.parametrize("name", ANNOTATED)
def test_annotated_data_are_no_plain_folder(tmp_path, name):
    data = ANNOTATED[name](tmp_path / "data")
    assert plain_images(data, usual_split="val") is None
    assert plain_images(data, tmp_path, "train") is None


def refused(error: type[EdgeRcnnError], data: Path, *more, **options) -> str:
    with pytest.raises(error) as caught:
        plain_images(data, *more, **options)
    assert type(caught.value) is error
    return str(caught.value)


def test_what_is_no_data_at_all(tmp_path):
    folder = plain(tmp_path / "photos")
    assert "nowhere does not exist: expected a folder of images, or annotations" in refused(
        SourceError, tmp_path / "nowhere"
    )
    assert "notes.txt is no folder" in refused(SourceError, folder / "notes.txt")
    assert "has no images" in refused(SourceError, folder / "folder.png")
    assert "omit it" in refused(UserError, folder, tmp_path)


def test_data_sets_are_not_mixed_as_pictures(tmp_path):
    data = coco_parts(tmp_path / "data")
    assert "has annotations in train, val: name one of them by --split" in refused(UserError, data, below=True)


def test_options_belong_to_data(tmp_path):
    check_data_options(None, None, None)
    check_data_options(tmp_path, tmp_path, "val")
    for given, words in (((tmp_path, None), "--pictures .* came without --on"), ((None, "val"), "--part val came")):
        with pytest.raises(UserError, match=words):
            check_data_options(None, *given, ("--on", "--pictures", "--part"))
