"""Every fault of a data set that has exactly these, in all three formats."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

from runtime.annotation_faults import KINDS
from tests.helpers import random_frame
from tests.helpers_data import Truth, write_coco, write_pictures
from tests.training.checked_data import NAMES, TRAIN, check, clean, spoil_pictures

SPOILT = {  # name: (how the JPEG is made, what happens to the bytes in the middle)
    "whole": ((), lambda data: data),
    "overwritten": ((), lambda data: middle(data, np.random.default_rng(0).bytes(1500), 1500)),
    "restarting": ((cv2.IMWRITE_JPEG_RST_INTERVAL, 4), lambda data: middle(data, b"", 300)),
    "progressive": ((cv2.IMWRITE_JPEG_PROGRESSIVE, 1), lambda data: middle(data, bytes(64), 64)),
}


def middle(data: bytes, put: bytes, count: int) -> bytes:
    """`data` with `put` in place of `count` bytes in the middle; begin and end stay."""
    return data[: len(data) // 2] + put + data[len(data) // 2 + count :]


def test_every_fault_of_coco(tmp_path):
    arguments = clean(tmp_path / "data", "coco")
    expected = spoil_pictures(tmp_path / "data")
    folder = tmp_path / "data" / "train"
    file = folder / "annotations.json"
    document = json.loads(file.read_text())
    write_pictures(folder / "images", [Truth("small", 5, 5), Truth("stray", 6, 6), Truth("t3", 23, 32)], 50)
    (folder / "images" / "notes.txt").write_text("no image")
    document["images"] += [
        {"id": 10, "file_name": "images/gone.png", "height": 24, "width": 32},
        {"id": 11, "file_name": "images/t3.png", "height": 23, "width": 32},  # t3 a second time
        {"id": 12, "file_name": "images/small.png", "height": 0, "width": 5},
        {"id": 12, "file_name": "images/small.png", "height": 5, "width": 5},
    ]
    expected += [
        ("train", "missing-image", "gone.png"),
        ("train", "duplicate-entry", "t3.png"),
        ("train", "wrong-size", "t3.png"),
        ("train", "wrong-value", "annotations.json"),
        ("train", "duplicate-id", "annotations.json"),
        ("train", "image-without-annotation", "small.png"),
        ("train", "image-without-annotation", "stray.png"),
    ]
    good = {"image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]}
    faults = [
        ("box-outside", {"bbox": [28, 1, 9, 9]}),
        ("box-outside", {"bbox": [100, 1, 9, 9]}),
        ("zero-area", {"bbox": [3, 3, 0, 5]}),
        ("negative-size", {"bbox": [3, 3, -1, 5]}),
        ("box-not-finite", {"bbox": [float("nan"), 3, 4, 5]}),
        ("box-not-finite", {"bbox": [1, 2, 3]}),
        ("unknown-class", {"category_id": 9, "bbox": [6, 1, 5, 5]}),
        ("label-without-image", {"image_id": 77}),
        ("wrong-value", {"iscrowd": 2}),
        ("wrong-value", {"area": -1}),
        ("duplicate-id", {"id": 1, "bbox": [7, 1, 5, 5]}),
        ("duplicate-box", {"bbox": document["annotations"][0]["bbox"]}),
    ]
    for number, (_, change) in enumerate(faults, start=100):
        document["annotations"].append({"id": number, **good, **change})
    document["annotations"] += [{"id": 90, "image_id": 1, "category_id": 9, "bbox": [30, 1, 9, 9]}, None]
    faults += [
        ("unknown-class", {}),
        ("box-outside", {}),
        ("wrong-value", {}),
    ]  # two faults of one entry, and no object
    expected += [("train", kind, "annotations.json") for kind, _ in faults]
    file.write_text(json.dumps(document))
    code, found = check(tmp_path, arguments)
    assert code == 1
    assert found == sorted(expected)


def test_data_without_images_or_objects_are_at_fault(tmp_path):
    """Labels in a folder that nobody looks into make every picture one without objects."""
    arguments = clean(tmp_path / "data", "yolo")
    (tmp_path / "data" / "labels" / "val").rename(tmp_path / "data" / "Labels")
    code, found = check(tmp_path, arguments, "--allow", "image-without-annotation")
    assert code == 1
    assert ("val", "no-objects", "data.yaml") in found
    assert ("train", "no-objects", "data.yaml") not in found
    empty = write_coco(tmp_path / "empty", [], NAMES)
    assert check(tmp_path, ["--data", str(empty)]) == (1, [("train", "no-objects", "annotations.json")])
    crowd = write_coco(tmp_path / "crowd", TRAIN[:1], NAMES)
    document = json.loads(crowd.read_text())
    for entry in document["annotations"]:
        entry["iscrowd"] = 1
    crowd.write_text(json.dumps(document))
    assert check(tmp_path, ["--data", str(crowd)]) == (1, [("train", "no-objects", "annotations.json")])


def test_names_too_long_are_missing_images(tmp_path):
    file = write_coco(tmp_path / "data", TRAIN[:2], NAMES)
    document = json.loads(file.read_text())
    document["images"][0]["file_name"] = "a" * 5000
    document["images"][1]["file_name"] = f"{'b' * 5000}/b.png"
    file.write_text(json.dumps(document))
    code, found = check(tmp_path, ["--data", str(file)])
    assert code == 1
    assert [kind for _, kind, _ in found] == ["missing-image", "missing-image"]


def test_damage_inside_a_picture(tmp_path):
    """The decoder goes on behind it; training goes on with such a picture, too."""
    file = write_coco(tmp_path / "data", TRAIN, NAMES)
    document = json.loads(file.read_text())
    folder = file.parent / "images"
    for number, (name, (options, spoil)) in enumerate(SPOILT.items()):
        whole = cv2.imencode(".jpg", random_frame(number, 96, 128), options)[1].tobytes()
        (folder / f"{name}.jpg").write_bytes(spoil(whole))
        document["images"][number] |= {"file_name": f"images/{name}.jpg", "height": 96, "width": 128}
    document["images"][0]["height"] = 95  # whole, but of another size
    document["images"][1]["height"] = 95
    file.write_text(json.dumps(document))
    for path in folder.glob("*.png"):
        path.unlink()
    code, found = check(tmp_path, ["--data", str(file)], "--allow", "wrong-size")
    assert code == 1
    assert found == [
        ("train", "damaged-image", "overwritten.jpg"),
        ("train", "damaged-image", "progressive.jpg"),
        ("train", "damaged-image", "restarting.jpg"),
        ("train", "wrong-size", "overwritten.jpg"),
        ("train", "wrong-size", "whole.jpg"),
    ]
    assert check(tmp_path, ["--data", str(file)], "--allow", "wrong-size", "damaged-image")[0] == 0


def test_every_fault_of_voc(tmp_path):
    arguments = clean(tmp_path / "data", "voc")
    expected = spoil_pictures(tmp_path / "data")
    folder = tmp_path / "data" / "VOC2007"
    more = ["gone", "unlabelled", "broken", "odd", "t3"]
    with (folder / "ImageSets" / "Main" / "trainval.txt").open("a") as opened:
        opened.write("\n".join(more) + "\n")
    write_pictures(folder / "JPEGImages", [Truth(name, 24, 32) for name in (*more[1:], "stray")], 50)
    box = "<bndbox><xmin>{}</xmin><ymin>2</ymin><xmax>{}</xmax><ymax>9</ymax></bndbox>"
    item = "<object><name>{}</name>{}</object>"
    boxes = [
        ("cat", 3, 90),
        ("cat", 5, 4),
        ("cat", 5, 2),
        ("cat", "nan", 4),
        ("cat", 4, 8),
        ("cat", 4, 8),
        ("cow", 4, 8),
    ]
    objects = "".join(item.format(name, box.format(first, last)) for name, first, last in boxes) + "<object/>"
    size = "<size><width>{}</width><height>24</height></size>"
    texts = {
        "gone": f"<annotation>{size.format(32)}</annotation>",
        "broken": "<annotation>",
        "odd": f"<annotation>{size.format(31)}{objects}</annotation>",
        "orphan": f"<annotation>{size.format(32)}</annotation>",
    }
    for name, text in texts.items():
        (folder / "Annotations" / f"{name}.xml").write_text(text)
    (tmp_path / "data" / "classes.txt").write_text("cat\ndog\n")
    expected += [
        ("train", "missing-image", "gone.jpg"),
        ("train", "image-without-annotation", "unlabelled.xml"),
        ("train", "image-without-annotation", "stray.png"),
        ("train", "label-without-image", "orphan.xml"),
        ("train", "unreadable-annotations", "broken.xml"),
        ("train", "duplicate-entry", "trainval.txt"),
        ("train", "wrong-size", "odd.png"),
    ]
    kinds = ["box-outside", "negative-size", "negative-size", "box-not-finite", "duplicate-box", "unknown-class"]
    expected += [("train", kind, "odd.xml") for kind in [*kinds, "wrong-value"]]
    code, found = check(tmp_path, arguments)
    assert code == 1
    assert found == sorted(expected)


def test_every_fault_of_yolo(tmp_path):
    arguments = clean(tmp_path / "data", "yolo")
    expected = spoil_pictures(tmp_path / "data")
    labels = tmp_path / "data" / "labels" / "train"
    (labels / "t1.txt").unlink()
    (labels / "orphan.txt").write_text("")
    lines = {
        "0 0.9 0.5 0.5 0.5": "box-outside",
        "0 9 9 4 4": "box-outside",
        "0 0.5 0.5 0 0.5": "zero-area",
        "0 0.5 0.5 -1 0.5": "negative-size",
        "0 nan 0.5 1 0.5": "box-not-finite",
        "2 0.5 0.5 0.5 0.5": "unknown-class",
        "x 0.5 0.5 0.5 0.5": "wrong-value",
        "0 0.5": "wrong-value",
        "0 0.5 0.5 0.25 0.25\n0 0.5 0.5 0.25 0.25": "duplicate-box",
    }
    (labels / "t3.txt").write_text("\n".join(lines))
    (labels / "t2.txt").write_bytes(b"\xff\xff")
    (tmp_path / "data" / "images" / "train" / "text.png").write_text("no picture")
    expected += [("train", kind, "t3.txt") for kind in lines.values()]
    expected += [
        ("train", "image-without-annotation", "t1.png"),
        ("train", "label-without-image", "orphan.txt"),
        ("train", "unreadable-annotations", "t2.txt"),
        ("train", "unreadable-image", "text.png"),
    ]
    expected.remove(("train", "duplicate-image", "t2.png"))  # its annotations cannot be read: it is not looked at
    code, found = check(tmp_path, arguments)
    assert code == 1
    assert found == sorted(expected)


def test_the_same_file_and_other_classes_in_train_and_val(tmp_path):
    train = write_coco(tmp_path / "train", TRAIN, NAMES)
    val = tmp_path / "train" / "val.json"
    document = json.loads(train.read_text())
    document["categories"][1]["name"] = "horse"
    val.write_text(
        json.dumps({**document, "images": document["images"][:1], "annotations": document["annotations"][:1]})
    )
    code, found = check(tmp_path, ["--data", str(train), "--val", str(val), "--val-images", str(train.parent)])
    assert code == 1
    assert found == [("val", "train-and-val", "t0.png"), ("val", "unknown-class", "val.json")]


def test_every_kind_of_fault_is_looked_for():
    """The tests above name each kind; a new one needs a data set that has it."""
    text = Path(__file__).read_text(encoding="utf-8")
    assert [kind for kind in KINDS if f'"{kind}"' not in text] == []
