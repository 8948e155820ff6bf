"""Pascal VOC: coordinates, splits, classes, and that every broken file gives one sentence."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.annotation_faults import AnnotationFault, Findings
from runtime.errors import AnnotationError
from runtime.voc import read_voc
from runtime.voc_folders import VOC_CLASSES
from tests.helpers_data import Truth, voc_xml, write_voc

# as VOC2007's 000001.xml, with a part inside an object, as VOC2007's people have
REAL = """<annotation>
  <folder>VOC2007</folder><filename>000001.jpg</filename>
  <size><width>353</width><height>500</height><depth>3</depth></size><segmented>0</segmented>
  <object><name>dog</name><pose>Left</pose><truncated>1</truncated><difficult>0</difficult>
    <bndbox><xmin>48</xmin><ymin>240</ymin><xmax>195</xmax><ymax>371</ymax></bndbox></object>
  <object><name>person</name><pose>Left</pose><truncated>1</truncated><difficult>1</difficult>
    <bndbox><xmin>1</xmin><ymin>1</ymin><xmax>353</xmax><ymax>500</ymax></bndbox>
    <part><name>head</name><bndbox><xmin>5</xmin><ymin>6</ymin><xmax>7</xmax><ymax>8</ymax></bndbox></part></object>
</annotation>"""


def voc_folder(folder, xml: str = REAL, name: str = "000001"):
    (folder / "Annotations").mkdir(parents=True)
    (folder / "Annotations" / f"{name}.xml").write_text(xml)
    return folder


def test_pixels_counted_from_one_become_sides_between_pixels(tmp_path):
    """A box of the whole picture, 1..353 and 1..500 in VOC, is 0, 0, 353, 500; sides are counts of pixels."""
    voc = read_voc(voc_folder(tmp_path / "VOC2007"))
    (image,) = voc
    assert image.boxes_xyxy.tolist() == [[47, 239, 195, 371], [0, 0, 353, 500]]
    assert image.boxes_xyxy.dtype == np.float32
    assert [voc.class_names[index] for index in image.class_ids] == ["dog", "person"]
    assert image.is_difficult.tolist() == [False, True]
    assert image.areas.tolist() == [148 * 132, 353 * 500]
    assert (image.height, image.width) == (500, 353)
    assert voc.class_names == VOC_CLASSES
    assert voc.category_ids == tuple(range(1, 21))
    assert image.path == tmp_path / "VOC2007" / "Annotations" / "000001.jpg"  # there is no JPEGImages


def test_a_year_keeps_its_classes_wherever_the_command_runs(tmp_path, monkeypatch):
    folder = voc_folder(tmp_path / "VOC2007")
    monkeypatch.chdir(folder)
    assert read_voc(".").class_names == VOC_CLASSES
    (tmp_path / "own").mkdir()
    voc_folder(tmp_path / "own" / "photos")
    (tmp_path / "own" / "VOC2012").symlink_to(tmp_path / "own" / "photos")
    assert read_voc(tmp_path / "own" / "VOC2012").class_names == VOC_CLASSES
    assert read_voc(tmp_path / "own" / "photos").class_names == ("dog", "person")


def years(folder):
    """VOC2007 with trainval and test, VOC2012 with trainval; a name of its own for each picture."""
    box = (1.0, 1.0, 5.0, 5.0, "cat", False)
    old = {"trainval": [Truth("000005", 10, 10, (box,)), Truth("000007", 10, 10)], "test": [Truth("000001", 10, 10)]}
    write_voc(folder / "VOC2007", old)
    write_voc(folder / "VOC2012", {"trainval": [Truth("2008_000002", 10, 10, (box,))]})
    return folder


def test_splits_of_one_year_and_of_several(tmp_path):
    devkit = years(tmp_path / "VOCdevkit")
    one = read_voc(devkit / "VOC2007", "trainval")
    assert [image.file_name for image in one] == ["JPEGImages/000005.png", "JPEGImages/000007.png"]
    joined = read_voc(devkit, "2007_trainval+2012_trainval")
    assert [image.file_name for image in joined] == [
        "VOC2007/JPEGImages/000005.png",
        "VOC2007/JPEGImages/000007.png",
        "VOC2012/JPEGImages/2008_000002.png",
    ]
    assert [image.image_id for image in joined] == [1, 2, 3]
    assert joined.class_names == VOC_CLASSES
    assert len(read_voc(devkit / "VOC2007", "trainval+test")) == 3
    assert len(read_voc(devkit, "voc_2007_test+2007_test")) == 1  # what several parts name comes once


@pytest.mark.parametrize(
    ("where", "split", "words"),
    [
        ("VOC2007", None, "came without a split; name one: test, trainval"),
        ("VOC2007", "val", "has no split 'val'"),
        ("VOC2007", "../../x", "has no split"),
        ("", None, "2007_test, 2007_trainval, 2012_trainval"),
        ("", "trainval", "has no split 'trainval'"),
        ("", "2010_trainval", "has no split '2010_trainval'"),
        ("", "2012_test", "has no split 'test'"),
        ("VOC2007", "empty", "lists no images"),
        ("VOC2007", "cat_train", "lists of one class are not read"),
        ("VOC2007", "climbing", "leads out"),
    ],
)
def test_wrong_splits_get_one_sentence(tmp_path, where, split, words):
    devkit = years(tmp_path)
    lists = devkit / "VOC2007" / "ImageSets" / "Main"
    (lists / "empty.txt").write_text("\n")
    (lists / "cat_train.txt").write_text("000005  1\n000007 -1\n")
    (lists / "climbing.txt").write_text("../../../etc/passwd\n")
    if split is None:
        (lists / "empty.txt").unlink()
        (lists / "climbing.txt").unlink()
    with pytest.raises(AnnotationError, match=words):
        read_voc(devkit / where, split)


def test_classes_of_own_data_are_those_of_all_splits_or_of_a_list(tmp_path):
    box = (1.0, 1.0, 5.0, 5.0)
    train = [Truth("a", 10, 10, ((*box, "nut", False),))]
    val = [Truth("b", 10, 10, ((*box, "bolt", False), (*box, "cat", False)))]
    write_voc(tmp_path / "VOC2007", {"train": train, "val": val})  # many keep the folder's name for data of their own
    assert read_voc(tmp_path / "VOC2007", "train").class_names == ("bolt", "cat", "nut")
    assert read_voc(tmp_path / "VOC2007", "val").class_names == ("bolt", "cat", "nut")
    (tmp_path / "VOC2007" / "classes.txt").write_text("nut\nbolt\n")
    assert read_voc(tmp_path / "VOC2007", "train").class_names == ("nut", "bolt")
    with pytest.raises(AnnotationFault, match="'cat' is no class of nut, bolt") as caught:
        read_voc(tmp_path / "VOC2007", "val")
    assert caught.value.fault.kind == "unknown-class"
    (tmp_path / "VOC2007" / "classes.txt").write_text("nut\nnut\n")
    with pytest.raises(AnnotationError, match='"nut" twice'):
        read_voc(tmp_path / "VOC2007", "train")


def test_images_are_found_by_any_suffix_and_elsewhere(tmp_path):
    voc = voc_folder(tmp_path / "voc")
    (voc / "JPEGImages").mkdir()
    assert read_voc(voc).images[0].path == voc / "JPEGImages" / "000001.jpg"  # not there, but expected
    (voc / "JPEGImages" / "000001.JPG").touch()
    assert read_voc(voc).images[0].file_name == "JPEGImages/000001.JPG"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "000001.bmp").touch()
    assert read_voc(voc, None, tmp_path / "elsewhere").images[0].path == tmp_path / "elsewhere" / "000001.bmp"


BOMB = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;&b;">]>'
BOX = "<bndbox><xmin>48</xmin><ymin>240</ymin><xmax>195</xmax><ymax>371</ymax></bndbox>"
BAD = {  # what the file holds, the kind of fault, words of the sentence
    "empty": ("", "unreadable-annotations", "is empty"),
    "blanks": (" \n", "unreadable-annotations", "is empty"),
    "no XML": ("{}", "unreadable-annotations", "is no valid XML"),
    "cut off": (REAL[:300], "unreadable-annotations", "is no valid XML"),
    "entities": (BOMB + REAL, "unreadable-annotations", "document type or entities"),
    "external entity": ('<!DOCTYPE a SYSTEM "file:///etc/passwd">' + REAL, "unreadable-annotations", "document type"),
    "endless nesting": ("<a>" * 5000 + "</a>" * 5000, "unreadable-annotations", "deep"),
    "unknown encoding": ('<?xml version="1.0" encoding="nope"?>' + REAL, "unreadable-annotations", "no valid XML"),
    "another root": ("<html/>", "unreadable-annotations", "has no <annotation>"),
    "no size": (REAL.replace("size>", "sighs>"), "unreadable-annotations", "<size>"),
    "width 0": (REAL.replace("<width>353", "<width>0"), "wrong-value", "width '0'"),
    "width a text": (REAL.replace("<width>353", "<width>wide"), "wrong-value", "width 'wide'"),
    "height infinite": (REAL.replace("<height>500", "<height>inf"), "wrong-value", "height 'inf'"),
    "height beyond": (REAL.replace("<height>500", "<height>70000"), "wrong-value", "height '70000'"),
    "no name": (REAL.replace("<name>dog</name>", ""), "wrong-value", r"object\[0\] has no <name>"),
    "no box": (REAL.replace(BOX, ""), "wrong-value", r"object\[0\] has no <bndbox>"),
    "no xmin": (REAL.replace("<xmin>48</xmin>", ""), "box-not-finite", r"object\[0\]: expected finite"),
    "NaN": (REAL.replace("<xmin>48", "<xmin>nan"), "box-not-finite", "expected finite"),
    "text": (REAL.replace("<xmin>48", "<xmin>left"), "box-not-finite", "expected finite"),
    "swapped": (REAL.replace("<xmin>48", "<xmin>300"), "negative-size", "ends before it starts"),
    "difficult 2": (REAL.replace("<difficult>0", "<difficult>2"), "wrong-value", "difficult is '2'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_give_one_sentence_that_names_file_and_fault(tmp_path, name):
    xml, kind, words = BAD[name]
    folder = voc_folder(tmp_path / "VOC2007", xml)
    with pytest.raises(AnnotationFault, match=words) as caught:
        read_voc(folder)
    assert caught.value.fault.kind == kind
    sentence = str(caught.value)
    assert str(folder / "Annotations" / "000001.xml") in sentence
    assert "\n" not in sentence
    assert caught.value.exit_code == 2
    findings = Findings(lenient=True)
    read_voc(folder, findings=findings)
    assert [fault.kind for fault in findings.faults] == [kind]


def test_a_file_too_large_and_one_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("runtime.xml_tree.MAX_BYTES", 100)
    folder = voc_folder(tmp_path / "VOC2007")
    with pytest.raises(AnnotationError, match=r"000001\.xml has more than"):
        read_voc(folder)
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    (folder / "ImageSets" / "Main" / "train.txt").write_text("000002\n")
    with pytest.raises(AnnotationError, match=r"000002\.xml is not there"):
        read_voc(folder, "train")
    (folder / "ImageSets" / "Main" / "train.txt").write_text("a" * 5000)
    with pytest.raises(AnnotationError, match=r"a\.xml is not there"):
        read_voc(folder, "train")


@pytest.mark.parametrize(
    ("box", "expected", "clipped", "dropped", "kinds"),
    [
        ((-3.0, 2.0, 5.0, 8.0), [[0, 2, 5, 8]], 1, 0, ["box-outside"]),
        ((2.0, 2.0, 25.0, 8.0), [[2, 2, 20, 8]], 1, 0, ["box-outside"]),
        ((2.0, 2.0, 20.25, 8.0), [[2, 2, 20, 8]], 1, 0, []),  # rounding
        ((30.0, 2.0, 35.0, 8.0), [], 0, 1, ["box-outside"]),
        ((0.0, 0.0, 20.0, 10.0), [[0, 0, 20, 10]], 0, 0, []),
    ],
)
def test_boxes_are_clipped_or_dropped_and_counted(tmp_path, box, expected, clipped, dropped, kinds):
    truth = Truth("a", 10, 20, ((*box, "cat", False),))
    folder = voc_folder(tmp_path / "VOC2007", voc_xml(truth), "a")
    voc = read_voc(folder)
    assert voc.images[0].boxes_xyxy.tolist() == expected
    assert (voc.clipped, voc.dropped) == (clipped, dropped)
    findings = Findings(lenient=True)
    read_voc(folder, findings=findings)
    assert [fault.kind for fault in findings.faults] == kinds


words = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"), exclude_characters="<&"), max_size=6)


@given(place=st.sampled_from([">48<", ">353<", ">500<", ">1<", ">dog<", ">0<"]), value=words | st.floats().map(str))
def test_any_value_anywhere_is_read_or_refused(tmp_path_factory, place, value):
    """No other exception than AnnotationError, and what is accepted is sound."""
    folder = tmp_path_factory.mktemp("any")
    voc_folder(folder / "VOC2007", REAL.replace(place, f">{value}<", 1))
    try:
        voc = read_voc(folder / "VOC2007")
    except AnnotationError:
        return
    finally:
        shutil.rmtree(folder)
    for image in voc:
        assert (image.boxes_xyxy[:, :2] < image.boxes_xyxy[:, 2:]).all()
        assert (image.boxes_xyxy >= 0).all()
        assert (image.boxes_xyxy[:, 2:] <= [image.width, image.height]).all()
        assert (image.class_ids < len(voc.class_names)).all()
