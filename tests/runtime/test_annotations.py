"""The three formats give the same annotations, and the format is told from what is there."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.annotations import declares_split, read_annotations
from runtime.errors import AnnotationError
from tests.helpers_data import Truth, picture, voc_xml, write_coco, write_voc, write_yolo, yolo_text

NAMES = ("bolt", "gear", "nut")
TRUTHS = (
    Truth("a", 40, 60, ((10.0, 5.0, 30.0, 15.0, "gear", False), (0.0, 0.0, 60.0, 40.0, "bolt", True))),
    Truth("b", 30, 20),
    Truth("c", 20, 20, ((1.5, 2.25, 7.0, 9.75, "nut", False),)),
)


def check_same(read, truths, *, difficult: bool) -> None:
    assert read.class_names == NAMES
    assert (read.clipped, read.dropped) == (0, 0)
    assert len(read) == len(truths)
    for number, (image, truth) in enumerate(zip(read, truths), start=1):
        assert (image.path.stem, image.height, image.width) == (truth.name, truth.height, truth.width)
        assert image.image_id == number
        expected = np.array([box[:4] for box in truth.boxes]).reshape(-1, 4)
        np.testing.assert_allclose(image.boxes_xyxy, expected, atol=1e-4)
        assert image.boxes_xyxy.dtype == np.float32
        assert [NAMES[class_id] for class_id in image.class_ids] == [box[4] for box in truth.boxes]
        assert image.is_difficult.tolist() == [box[5] and difficult for box in truth.boxes]
        assert not image.is_crowd.any()
        widths, heights = expected[:, 2] - expected[:, 0], expected[:, 3] - expected[:, 1]
        np.testing.assert_allclose(image.areas, widths * heights, rtol=1e-3)


def test_all_formats_give_the_same_boxes_and_pictures(tmp_path):
    coco = read_annotations(write_coco(tmp_path / "coco", TRUTHS, NAMES))
    voc = read_annotations(write_voc(tmp_path / "voc", {"trainval": TRUTHS}), split="trainval")
    yolo = read_annotations(write_yolo(tmp_path / "yolo", {"train": TRUTHS}, NAMES), split="train")
    for read, difficult in ((coco, False), (voc, True), (yolo, False)):
        check_same(read, TRUTHS, difficult=difficult)
        for seed, image in enumerate(read):
            assert np.array_equal(image.read(), picture(seed, image.height, image.width))


@st.composite
def truths(draw):
    """Boxes on a grid of 1/8 px, inside their picture; the first picture has one of each class."""
    found = []
    for index in range(draw(st.integers(1, 3))):
        height, width = draw(st.integers(2, 40)), draw(st.integers(2, 40))
        boxes = []
        for number in range(draw(st.integers(0, 3)) + len(NAMES) * (index == 0)):
            x1, y1 = draw(st.integers(0, 8 * width - 1)), draw(st.integers(0, 8 * height - 1))
            x2, y2 = draw(st.integers(x1 + 1, 8 * width)), draw(st.integers(y1 + 1, 8 * height))
            # pixels counted from 1 cannot tell a box of less than one pixel from a swapped one
            x1, y1 = min(x1, max(0, x2 - 8)), min(y1, max(0, y2 - 8))
            x2, y2 = max(x2, x1 + 8), max(y2, y1 + 8)
            name = NAMES[number] if index == 0 and number < len(NAMES) else draw(st.sampled_from(NAMES))
            boxes.append((x1 / 8, y1 / 8, x2 / 8, y2 / 8, name, draw(st.booleans())))
        found.append(Truth(f"p{index}", height, width, tuple(boxes)))
    return found


@settings(max_examples=15)
@given(truths())
def test_what_is_written_is_read(tmp_path_factory, truths):
    folder = tmp_path_factory.mktemp("formats")
    check_same(read_annotations(write_coco(folder / "coco", truths, NAMES)), truths, difficult=False)
    check_same(read_annotations(write_voc(folder / "voc", {"all": truths}), split="all"), truths, difficult=True)
    yolo = write_yolo(folder / "yolo", {"train": truths, "val": truths[:1]}, NAMES)
    check_same(read_annotations(yolo, split="train"), truths, difficult=False)
    check_same(read_annotations(yolo, usual_split="val"), truths[:1], difficult=False)
    shutil.rmtree(folder)


def test_folders_of_every_layout_are_recognised(tmp_path):
    """Each path, with a split or none, and what must be read."""
    write_coco(tmp_path / "coco" / "train", TRUTHS, NAMES)
    shutil.copytree(tmp_path / "coco" / "train", tmp_path / "roboflow")
    (tmp_path / "roboflow" / "annotations.json").rename(tmp_path / "roboflow" / "_annotations.coco.json")
    write_voc(tmp_path / "voc", {"train": TRUTHS})
    flat = tmp_path / "flat" / "train"
    shutil.copytree(tmp_path / "voc" / "JPEGImages", flat)
    for truth in TRUTHS:
        (flat / f"{truth.name}.xml").write_text(voc_xml(truth))
    yaml = write_yolo(tmp_path / "yolo", {"train": TRUTHS}, NAMES)
    bare = tmp_path / "bare"
    shutil.copytree(yaml.parent, bare)
    (bare / "data.yaml").unlink()
    (bare / "classes.txt").write_text("bolt\ngear\n\nnut\n")
    split_first = tmp_path / "split-first"
    for kind in ("images", "labels"):
        shutil.copytree(bare / kind / "train", split_first / "train" / kind)
    shutil.copy(bare / "classes.txt", split_first)
    for path, split in (
        (tmp_path / "coco" / "train", None),
        (tmp_path / "coco", "train"),
        (tmp_path / "roboflow", None),
        (tmp_path / "voc", "train"),
        (flat, None),
        (flat.parent, "train"),
        (yaml, None),  # the only split that it has
        (yaml.parent, "train"),
        (bare, "train"),
        (split_first, "train"),
    ):
        found = read_annotations(path, split=split)
        assert [len(image.boxes_xyxy) for image in found] == [2, 0, 1], path
        assert all(image.path.is_file() for image in found), path
        assert found.class_names == NAMES


def test_declared_splits(tmp_path):
    yaml = write_yolo(tmp_path / "yolo", {"train": TRUTHS, "val": TRUTHS}, NAMES)
    write_coco(tmp_path / "coco" / "val", TRUTHS, NAMES)
    assert declares_split(yaml, "val")
    assert declares_split(yaml.parent, "val")
    assert not declares_split(yaml, "test")
    assert declares_split(tmp_path / "coco", "val")
    assert not declares_split(tmp_path / "coco" / "val", "val")
    assert not declares_split(tmp_path / "nowhere", "val")
    assert len(read_annotations(tmp_path / "coco", usual_split="val")) == 3


def test_splits_of_folders_without_data_yaml_stay_apart(tmp_path):
    """Their usual splits count, and without one they are not read together: training would see the validation data."""
    bare = write_yolo(tmp_path / "bare", {"train": TRUTHS, "val": TRUTHS[:1]}, NAMES).parent
    (bare / "data.yaml").unlink()
    (bare / "classes.txt").write_text("\n".join(NAMES))
    split_first = tmp_path / "split-first"
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            shutil.copytree(bare / kind / split, split_first / split / kind)
    shutil.copy(bare / "classes.txt", split_first)
    for path in (bare, split_first):
        assert [declares_split(path, split) for split in ("train", "val", "test")] == [True, True, False]
        check_same(read_annotations(path, usual_split="train"), TRUTHS, difficult=False)
        check_same(read_annotations(path, usual_split="val"), TRUTHS[:1], difficult=False)
    assert "came without a split; it has train, val" in refused(bare)
    assert "came without a split" in refused(split_first)
    assert "it has train, val" in refused(bare, usual_split="test")
    voc = write_voc(tmp_path / "voc", {"train": TRUTHS})
    (voc / "images" / "train").mkdir(parents=True)
    assert not declares_split(voc, "train")


def test_byte_order_marks_are_no_part_of_the_first_word(tmp_path):
    """As Windows writes text files: classes.txt, YOLO's and VOC's lists of images, COCO's JSON."""
    mark = "\ufeff"
    voc = write_voc(tmp_path / "voc", {"train": TRUTHS})
    yolo = write_yolo(tmp_path / "yolo", {"train": TRUTHS}, NAMES)
    yolo.write_text("train: list.txt\nnames: [bolt, gear, nut]\n")
    (yolo.parent / "list.txt").write_text(
        mark + "".join(f"images/train/{truth.name}.png\n" for truth in TRUTHS), encoding="utf-8"
    )
    (voc / "classes.txt").write_text(mark + "\n".join(NAMES), encoding="utf-8")
    names = voc / "ImageSets" / "Main" / "train.txt"
    names.write_text(mark + names.read_text(), encoding="utf-8")
    coco = write_coco(tmp_path / "coco", TRUTHS, NAMES)
    coco.write_text(mark + coco.read_text(), encoding="utf-8")
    check_same(read_annotations(yolo), TRUTHS, difficult=False)
    check_same(read_annotations(voc, split="train"), TRUTHS, difficult=True)
    check_same(read_annotations(coco), TRUTHS, difficult=False)


def refused(path: Path, **options) -> str:
    with pytest.raises(AnnotationError) as caught:
        read_annotations(path, **options)
    sentence = str(caught.value)
    assert str(path) in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence
    return sentence


def test_what_is_none_of_the_formats_gets_one_sentence(tmp_path):
    assert "is not there" in refused(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "none of the known formats" in refused(tmp_path / "empty")
    (tmp_path / "notes.txt").write_text("x")
    assert "none of the known formats" in refused(tmp_path / "notes.txt")
    coco = write_coco(tmp_path / "coco", TRUTHS, NAMES)
    assert "no split 'val'" in refused(coco, split="val")
    yaml = write_yolo(tmp_path / "yolo", {"train": TRUTHS, "val": TRUTHS}, NAMES)
    assert "came without a split; it has train, val" in refused(yaml)
    assert "means nothing" in refused(yaml, split="train", images=tmp_path)
    assert yolo_text(TRUTHS[1], NAMES) == ""
