"""YOLO text: coordinates, layouts, the part of YAML that is read, and that every broken file gives one sentence."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.annotation_faults import AnnotationFault, Findings
from runtime.errors import AnnotationError
from runtime.yolo import read_yolo
from runtime.yolo_folders import label_file
from runtime.yolo_yaml import YoloFile
from tests.helpers_data import Truth, write_yolo


def one_image(folder: Path, lines: str) -> Path:
    """A data set of one picture, 20 px high and 40 wide, with classes cat and dog."""
    path = write_yolo(folder, {"train": [Truth("a", 20, 40)]}, ["cat", "dog"])
    (folder / "labels" / "train" / "a.txt").write_text(lines)
    return path


@pytest.mark.parametrize(
    ("lines", "boxes", "classes"),
    [
        ("1 0.5 0.5 0.25 0.5", [[15, 5, 25, 15]], [1]),
        ("0 0.5 0.5 1 1\n\n1 0.125 0.25 0.25 0.5\n", [[0, 0, 40, 20], [0, 0, 10, 10]], [0, 1]),
        ("0.0 0.5 0.5 1 1", [[0, 0, 40, 20]], [0]),
        ("1 0.25 0.5 0.75 0.25 0.5 1.0", [[10, 5, 30, 20]], [1]),  # an outline of three points
        ("1 0.25 0.5 0.75 0.25 0.5 1.0 0.25 0.75", [[10, 5, 30, 20]], [1]),
        ("\ufeff1 0.5 0.5 0.25 0.5", [[15, 5, 25, 15]], [1]),  # a byte order mark, as Windows writes it
        ("", [], []),
    ],
)
def test_shares_become_px(tmp_path, lines, boxes, classes):
    yolo = read_yolo(one_image(tmp_path, lines))
    (image,) = yolo
    assert image.boxes_xyxy.tolist() == boxes
    assert image.class_ids.tolist() == classes
    assert (image.height, image.width, image.file_name) == (20, 40, "images/train/a.png")
    assert yolo.class_names == ("cat", "dog")
    assert yolo.category_ids == (0, 1)


@pytest.mark.parametrize(
    ("line", "expected", "clipped", "dropped", "kinds"),
    [
        ("0 0 0.5 0.5 1", [[0, 0, 10, 20]], 1, 0, ["box-outside"]),
        ("0 0.5 0.5 1.000001 1", [[0, 0, 40, 20]], 1, 0, []),  # rounding
        ("0 0.5 0.5 0 0.5", [], 0, 1, ["zero-area"]),
        ("0 -0.5 0.5 0.5 0.5", [], 0, 1, ["box-outside"]),
    ],
)
def test_boxes_are_clipped_or_dropped_and_counted(tmp_path, line, expected, clipped, dropped, kinds):
    path = one_image(tmp_path, line)
    yolo = read_yolo(path)
    assert yolo.images[0].boxes_xyxy.tolist() == expected
    assert (yolo.clipped, yolo.dropped) == (clipped, dropped)
    findings = Findings(lenient=True)
    read_yolo(path, findings=findings)
    assert [fault.kind for fault in findings.faults] == kinds


BAD = {
    "a class alone": ("0", "wrong-value", "line 1: 1 values"),
    "four values": ("0 0.5 0.5 1", "wrong-value", "4 values"),
    "with a score": ("0 0.5 0.5 1 1 0.9", "wrong-value", "6 values"),
    "two points": ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "wrong-value", "8 values"),
    "class a name": ("cat 0.5 0.5 1 1", "wrong-value", "class 'cat'"),
    "class a fraction": ("0.5 0.5 0.5 1 1", "wrong-value", "class '0.5'"),
    "class beyond": (
        "0 0.5 0.5 1 1\n2 0.5 0.5 1 1",
        "unknown-class",
        "line 2: class 2, but names are given for 0 to 1",
    ),
    "class negative": ("-1 0.5 0.5 1 1", "unknown-class", "class -1"),
    "NaN": ("0 nan 0.5 1 1", "box-not-finite", "finite numbers"),
    "infinite": ("0 0.5 0.5 inf 1", "box-not-finite", "finite numbers"),
    "text": ("0 left 0.5 1 1", "box-not-finite", "finite numbers"),
    "px": ("0 12 8 4 4", "box-outside", "divide px by its size"),
    "negative": ("0 0.5 0.5 -0.1 1", "negative-size", "expected none below 0"),
    "outline outside": ("0 -0.5 0 1 1 0 1", "box-outside", "from 0 to 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_lines_give_one_sentence_that_names_file_and_line(tmp_path, name):
    lines, kind, words = BAD[name]
    path = one_image(tmp_path, lines)
    with pytest.raises(AnnotationFault, match=words) as caught:
        read_yolo(path)
    assert caught.value.fault.kind == kind
    assert str(tmp_path / "labels" / "train" / "a.txt") in str(caught.value)
    assert caught.value.exit_code == 2
    findings = Findings(lenient=True)
    assert len(read_yolo(path, findings=findings)) == 1
    assert [fault.kind for fault in findings.faults] == [kind]


def test_label_files_that_are_none(tmp_path, monkeypatch):
    path = one_image(tmp_path, "0 0.5 0.5 1 1")
    file = tmp_path / "labels" / "train" / "a.txt"
    file.write_bytes(b"\xff\xfe0")
    with pytest.raises(AnnotationError, match=r"a\.txt cannot be read \(it is not UTF-8 text\)"):
        read_yolo(path)
    file.unlink()
    file.mkdir()
    with pytest.raises(AnnotationError, match=r"a\.txt cannot be read"):
        read_yolo(path)
    file.rmdir()
    assert read_yolo(path).images[0].boxes_xyxy.shape == (0, 4)  # no file: no objects
    file.write_text("0 0.5 0.5 1 1")
    monkeypatch.setattr("runtime.yolo.MAX_BYTES", 5)
    with pytest.raises(AnnotationError, match=r"a\.txt has more than"):
        read_yolo(path)


def test_images_that_are_none_stop_strict_reading(tmp_path):
    path = one_image(tmp_path, "")
    (tmp_path / "images" / "train" / "a.png").write_bytes(b"text")
    with pytest.raises(AnnotationFault, match=r"a\.png cannot be read as an image") as caught:
        read_yolo(path)
    assert caught.value.fault.kind == "unreadable-image"
    (tmp_path / "images" / "train" / "a.png").unlink()
    with pytest.raises(AnnotationError, match="has no images"):
        read_yolo(path)


def test_a_picture_without_size_is_refused(tmp_path):
    path = one_image(tmp_path, "0 0.5 0.5 1 1")
    head = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + b"\0" * 8 + b"\x08\x02" + b"\0" * 11 + b"IDAT"
    (tmp_path / "images" / "train" / "a.png").write_bytes(head)
    with pytest.raises(AnnotationFault, match=r"a\.png says that it is 0x0 px, expected sides from 1") as caught:
        read_yolo(path)
    assert caught.value.fault.kind == "unreadable-image"


def test_empty_splits_and_endless_names_get_one_sentence(tmp_path):
    path = one_image(tmp_path, "")
    path.write_text("train: []\nnames: [cat]\n")
    with pytest.raises(AnnotationError, match=r"data\.yaml has no images"):
        read_yolo(path)
    path.write_text(f"train: {'a' * 5000}\nnames: [cat]\n")
    with pytest.raises(AnnotationError, match="a, which is not there"):
        read_yolo(path)
    (tmp_path / "list.txt").write_text(f"images/{'a' * 5000}.jpg\n")
    path.write_text("train: list.txt\nnames: [cat]\n")
    with pytest.raises(AnnotationFault, match=r"a\.jpg is not there") as caught:
        read_yolo(path)
    assert caught.value.fault.kind == "missing-image"


def test_splits_as_lists_of_folders_and_of_files(tmp_path):
    write_yolo(tmp_path, {"one": [Truth("a", 4, 4)], "two": [Truth("b", 4, 4)]}, ["cat"])
    (tmp_path / "list.txt").write_text(f"./images/two/b.png\n\n{tmp_path}/images/one/a.png\n")
    path = tmp_path / "data.yaml"
    for value, expected in (
        ("[images/one, images/two]", ["a", "b"]),
        ("\n  - images/two\n  - images/one", ["b", "a"]),
        ("list.txt", ["b", "a"]),
        ("../images/two", ["b"]),  # as Roboflow writes it
        (f"{tmp_path}/images/one", ["a"]),
        ("images", ["a", "b"]),
    ):
        path.write_text(f"train: {value}\nnames: [cat]\n")
        assert [image.path.stem for image in read_yolo(path, "train")] == expected, value
    (tmp_path / "list.txt").write_text("missing.png\n")
    path.write_text("train: list.txt\nnames: [cat]\n")
    with pytest.raises(AnnotationFault, match=r"missing\.png is not there") as caught:
        read_yolo(path, "train")
    assert caught.value.fault.kind == "missing-image"
    path.write_text("train: nowhere\nnames: [cat]\n")
    with pytest.raises(AnnotationError, match="nowhere, which is not there"):
        read_yolo(path, "train")


@pytest.mark.parametrize(
    ("picture", "label"),
    [
        ("d/images/train/a.jpg", "d/labels/train/a.txt"),
        ("images/x/images/a.b.png", "images/x/labels/a.b.txt"),
        ("d/pictures/a.jpg", "d/pictures/a.txt"),
        ("d/images.jpg", "d/images.txt"),
    ],
)
def test_label_files_by_the_last_folder_called_images(picture, label):
    assert label_file(Path(picture)) == Path(label)


def yaml(folder: Path, text: str) -> YoloFile:
    (folder / "data.yaml").write_text(text, encoding="utf-8")
    return YoloFile(folder / "data.yaml")


# as Ultralytics' coco8.yaml, Roboflow's export, and YOLOv5's old coco.yaml write it
ULTRALYTICS = """# comment
path: ../datasets/coco8  # dataset root dir
train: images/train
val: images/val
test:

# Classes
names:
  0: person
  1: traffic light
  2: "it's"

download: |
  # script
  for i in range(3):
    names: [no, no]
"""
ROBOFLOW = """train: ../train/images
val: ../valid/images
test: ../test/images

nc: 3
names: ['person', 'traffic light', "it's"]

roboflow:
  workspace: x
  names: y
"""
OLD = """train: ./coco/train.txt  # images
nc: 3
names: ['person', 'traffic light',
        'it''s']
"""
LINES = "names:\n- person\n- 'traffic light'\n- it's\n"
BRACES = "names: {0: person, 1: 'traffic light', 2: it's}\r\n"


@pytest.mark.parametrize("text", [ULTRALYTICS, ROBOFLOW, OLD, LINES, BRACES])
def test_names_in_all_ways_of_writing(tmp_path, text):
    assert yaml(tmp_path, text).names == ("person", "traffic light", "it's")


def test_paths_and_splits(tmp_path):
    read = yaml(tmp_path, ULTRALYTICS)
    assert read.path == "../datasets/coco8"
    assert read.splits == {"train": ["images/train"], "val": ["images/val"]}
    assert yaml(tmp_path, ROBOFLOW).splits["test"] == ["../test/images"]
    assert yaml(tmp_path, "path: 'C:\\data # 1'\nnames: [a]").path == "C:\\data # 1"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no names"),
        ("names:\n", "has no names"),
        ("names: []", "has no class names"),
        ("names: [a, a]", '"a" twice'),
        ("names: [a]\nnames: [b]", "appears twice"),
        ("names: [a, b]\nnc: 3", "says nc: 3, but names 2"),
        ("names: [a, b", "expected"),
        ("names: ['a, b]", "a quote does not end"),
        ("names: {0: a, 2: b}", "expected 0, 1, 2"),
        ("names:\n  0: a\n  zero: b", "expected a list"),
        ("names: {a: b}", "expected a list"),
        ("names: &anchor [a]", "expected one text"),
        ("names: [[a], b]", "expected a plain or quoted text"),
        ("path: [a, b]\nnames: [a]", "path is"),
        ("path: |\n  a\nnames: [a]", "path is"),
        ("just words", "line 1"),
        ("{names: [a]}", "line 1"),
        ("  names: [a]", "line 1"),
        ("names: [a]\n\tx", "names is .*expected"),
    ],
)
def test_other_yaml_is_refused_with_one_sentence(tmp_path, text, words):
    with pytest.raises(AnnotationError, match=words) as caught:
        yaml(tmp_path, text)
    assert str(tmp_path / "data.yaml") in str(caught.value)
    assert "\n" not in str(caught.value)


@given(names=st.lists(st.text("abc XYZ'\"#,:[]{}0-", min_size=1, max_size=6).map(str.strip).filter(bool), unique=True))
def test_quoted_names_come_back(tmp_path_factory, names):
    """In single quotes, as PyYAML writes what is not plain; in brackets and in lines."""
    quoted = ["'" + name.replace("'", "''") + "'" for name in names]
    folder = tmp_path_factory.mktemp("names")
    if names:
        assert yaml(folder, f"names: [{', '.join(quoted)}]").names == tuple(names)
        assert yaml(folder, "names:\n" + "".join(f"- {name}\n" for name in quoted)).names == tuple(names)
        lines = "".join(f"  {number}: {name}\n" for number, name in enumerate(quoted))
        assert yaml(folder, "names:\n" + lines).names == tuple(names)
    shutil.rmtree(folder)


@given(text=st.text("names:[]{}-'\"#, \n0123\tpatrvl|&", max_size=40))
def test_any_text_is_read_or_refused(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("text")
    try:
        read = yaml(folder, text)
    except AnnotationError:
        return
    finally:
        shutil.rmtree(folder)
    assert len(read.names) > 0
    assert len(set(read.names)) == len(read.names)


def test_size_of_a_turned_picture(tmp_path):
    """Boxes belong to the picture as it is shown: EXIF orientation 6 exchanges its sides."""
    path = one_image(tmp_path, "0 0.25 0.5 0.5 1")
    data = cv2.imencode(".jpg", np.zeros((20, 40, 3), np.uint8))[1].tobytes()
    tiff = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    exif = b"\xff\xe1" + (len(tiff) + 8).to_bytes(2, "big") + b"Exif\0\0" + tiff
    (tmp_path / "images" / "train" / "a.png").unlink()
    (tmp_path / "images" / "train" / "a.jpg").write_bytes(data[:2] + exif + data[2:])
    (image,) = read_yolo(path)
    assert (image.height, image.width) == (40, 20)
    assert image.boxes_xyxy.tolist() == [[0, 0, 10, 40]]
    assert image.read().shape == (40, 20, 3)
