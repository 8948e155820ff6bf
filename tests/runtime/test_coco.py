"""COCO annotations: what is read, and that every broken file gives one sentence."""

from __future__ import annotations

import copy
import json
import math

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.coco import CocoAnnotations, read_coco
from runtime.errors import AnnotationError, SourceError

GOOD = {
    "images": [
        {"id": 7, "file_name": "a.png", "height": 40, "width": 60},
        {"id": 3, "file_name": "sub/b.png", "height": 30, "width": 20},
    ],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 90, "bbox": [10, 5, 20, 10], "area": 150.5, "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 2, "bbox": [0, 0, 60, 40], "iscrowd": 1},
    ],
    "categories": [{"id": 90, "name": "gear"}, {"id": 2, "name": "bolt"}, {"id": 17, "name": "nut"}],
}


def write(folder, document) -> str:
    path = folder / "annotations.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
    return path


def changed(*path_and_value):
    """GOOD with one place changed; the last argument is the new value, or DELETE."""
    *path, value = path_and_value
    document = copy.deepcopy(GOOD)
    place = document
    for key in path[:-1]:
        place = place[key]
    if value is DELETE:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return document


DELETE = object()


def test_reads_boxes_classes_and_images_in_order(tmp_path):
    coco = read_coco(write(tmp_path, GOOD))
    assert isinstance(coco, CocoAnnotations)
    assert coco.class_names == ("bolt", "nut", "gear")
    assert coco.category_ids == (2, 17, 90)
    assert [coco.class_id(coco.category_id(k)) for k in range(3)] == [0, 1, 2]
    assert (coco.clipped, coco.dropped) == (0, 0)
    first, empty = coco.images
    assert (first.image_id, first.file_name, first.height, first.width) == (7, "a.png", 40, 60)
    assert first.path == tmp_path / "a.png"
    assert first.boxes_xyxy.tolist() == [[10, 5, 30, 15], [0, 0, 60, 40]]
    assert first.boxes_xyxy.dtype == np.float32
    assert first.class_ids.tolist() == [2, 0]
    assert first.class_ids.dtype == np.int64
    assert first.is_crowd.tolist() == [False, True]
    assert first.areas.tolist() == [150.5, 2400]
    assert empty.image_id == 3
    assert empty.boxes_xyxy.shape == (0, 4)
    assert len(coco) == len(list(coco)) == 2


def test_image_folder_can_be_elsewhere(tmp_path):
    assert read_coco(write(tmp_path, GOOD), tmp_path / "pictures").images[1].path == tmp_path / "pictures/sub/b.png"


@pytest.mark.parametrize(
    ("bbox", "expected", "clipped", "dropped"),
    [
        ([-5, -5, 20, 20], [[0, 0, 15, 15]], 1, 0),
        ([50, 30, 100, 100], [[50, 30, 60, 40]], 1, 0),
        ([-1e308, 0, 1.5e308, 40], [[0, 0, 60, 40]], 1, 0),
        ([1e308, 0, 1e308, 40], [], 0, 1),  # x + width is infinite
        ([60, 0, 10, 10], [], 0, 1),  # starts where the image ends
        ([-10, 0, 10, 10], [], 0, 1),
        ([5, 5, 0, 10], [], 0, 1),
        ([5, 5, 1e-9, 10], [], 0, 1),  # no area in float32
        ([5.5, 5.25, 1.5, 2.5], [[5.5, 5.25, 7, 7.75]], 0, 0),
    ],
)
def test_boxes_are_clipped_or_dropped_and_counted(tmp_path, bbox, expected, clipped, dropped):
    document = changed("annotations", [{"id": 1, "image_id": 7, "category_id": 2, "bbox": bbox}])
    coco = read_coco(write(tmp_path, document))
    assert coco.images[0].boxes_xyxy.tolist() == expected
    assert (coco.clipped, coco.dropped) == (clipped, dropped)


IMAGE, ENTRY = ("images", 0), ("annotations", 0)
BAD = {
    "empty file": ("", "is empty"),
    "blanks": (" \n", "is empty"),
    "cut off": (json.dumps(GOOD)[:150], "no valid JSON"),
    "no JSON": ("<html>", "no valid JSON"),
    "endless nesting": ("[" * 100_000, "no valid JSON"),
    "endless number": ('{"images": ' + "9" * 5000 + "}", "no valid JSON"),
    "a list": ("[]", "holds a list"),
    "null": ("null", "holds a null"),
    "no images": (changed("images", DELETE), 'no "images"'),
    "no annotations": (changed("annotations", DELETE), 'no "annotations"'),
    "no categories key": (changed("categories", DELETE), 'no "categories"'),
    "images an object": (changed("images", {}), "expected a list"),
    "categories empty": (changed("categories", []), "no categories"),
    "category a text": (changed("categories", 0, "bolt"), r"categories\[0\] is a text"),
    "category without name": (changed("categories", 0, "name", DELETE), r'categories\[0\] has no "name"'),
    "category name empty": (changed("categories", 0, "name", " "), r"categories\[0\]: name"),
    "half a surrogate pair": (changed("categories", 0, "name", "\ud800"), r"categories\[0\]: name is '\\ud800'"),
    "name of two lines": (changed("categories", 0, "name", "a\nb"), "without control characters"),
    "category id twice": (changed("categories", 1, "id", 90), r"categories\[1\]: id 90 appears twice"),
    "category name twice": (changed("categories", 1, "name", "gear"), "appears twice"),
    "category id a float": (changed("categories", 0, "id", 1.5), "whole number"),
    "image without size": (changed(*IMAGE, "height", DELETE), r'images\[0\] has no "height"'),
    "image without name": (changed(*IMAGE, "file_name", DELETE), 'no "file_name"'),
    "image without id": (changed(*IMAGE, "id", DELETE), 'no "id"'),
    "image id twice": (changed("images", 1, "id", 7), r"images\[1\]: id 7 appears twice"),
    "image id a boolean": (changed(*IMAGE, "id", True), "whole number"),
    "image id too large": (changed(*IMAGE, "id", 1 << 70), "whole number"),
    "image of no height": (changed(*IMAGE, "height", 0), "size 60x0"),
    "image of negative width": (changed(*IMAGE, "width", -4), "size -4x40"),
    "image too large": (changed(*IMAGE, "width", 10**9), "expected sides"),
    "image null": (changed(*IMAGE, None), r"images\[0\] is a null"),
    "climbing name": (changed(*IMAGE, "file_name", "../a.png"), "leads out"),
    "hidden climbing": (changed(*IMAGE, "file_name", "x/../../a.png"), "leads out"),
    "absolute name": (changed(*IMAGE, "file_name", "/etc/passwd"), "leads out"),
    "Windows drive": (changed(*IMAGE, "file_name", "C:\\a.png"), "leads out"),
    "Windows climbing": (changed(*IMAGE, "file_name", "..\\a.png"), "leads out"),
    "network name": (changed(*IMAGE, "file_name", "\\\\host\\share\\a.png"), "leads out"),
    "zero byte": (changed(*IMAGE, "file_name", "a\0.png"), "without control characters"),
    "box without id": (changed(*ENTRY, "id", DELETE), r'annotations\[0\] has no "id"'),
    "box without image": (changed(*ENTRY, "image_id", DELETE), 'no "image_id"'),
    "box without bbox": (changed(*ENTRY, "bbox", DELETE), 'no "bbox"'),
    "box id twice": (changed(*ENTRY, "id", 2), "id 2 appears twice"),
    "unknown image": (changed(*ENTRY, "image_id", 8), "image_id 8 is not among"),
    "unknown category": (changed(*ENTRY, "category_id", 1), "category_id 1 is not among"),
    "bbox of three": (changed(*ENTRY, "bbox", [1, 2, 3]), "four finite numbers"),
    "bbox of texts": (changed(*ENTRY, "bbox", ["1", 2, 3, 4]), "four finite numbers"),
    "bbox of booleans": (changed(*ENTRY, "bbox", [True, 2, 3, 4]), "four finite numbers"),
    "bbox null": (changed(*ENTRY, "bbox", None), "four finite numbers"),
    "bbox NaN": (changed(*ENTRY, "bbox", [math.nan, 2, 3, 4]), "four finite numbers"),
    "bbox infinite": (changed(*ENTRY, "bbox", [0, 2, math.inf, 4]), "four finite numbers"),
    "bbox beyond float": (changed(*ENTRY, "bbox", [10**400, 2, 3, 4]), "four finite numbers"),
    "bbox negative width": (changed(*ENTRY, "bbox", [1, 2, -3, 4]), "negative size"),
    "bbox negative height": (changed(*ENTRY, "bbox", [1, 2, 3, -4]), "negative size"),
    "area negative": (changed(*ENTRY, "area", -1), "area is -1"),
    "area NaN": (changed(*ENTRY, "area", math.nan), "area is nan"),
    "crowd 2": (changed(*ENTRY, "iscrowd", 2), "iscrowd is 2"),
    "crowd a list": (changed(*ENTRY, "iscrowd", []), "iscrowd"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_give_one_sentence_that_names_file_and_fault(tmp_path, name):
    document, message = BAD[name]
    path = write(tmp_path, document)
    with pytest.raises(AnnotationError, match=message) as caught:
        read_coco(path)
    sentence = str(caught.value)
    assert str(path) in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert len(sentence) < len(str(path)) + 300
    assert caught.value.exit_code == 2


def test_unreadable_files(tmp_path):
    with pytest.raises(AnnotationError, match="No such file"):
        read_coco(tmp_path / "missing.json")
    with pytest.raises(AnnotationError, match="directory"):
        read_coco(tmp_path)
    (tmp_path / "latin.json").write_bytes(b'{"images": "\xe4"}')
    with pytest.raises(AnnotationError, match="UTF-8"):
        read_coco(tmp_path / "latin.json")


def test_names_of_any_script_and_with_odd_spaces_are_read(tmp_path):
    for name in ("é b.png", "写真　1.png", "Screenshot 9.41\u202fAM.png", "\U0001f529.png"):
        assert read_coco(write(tmp_path, changed(*IMAGE, "file_name", name))).images[0].file_name == name


def test_a_name_too_long_is_a_missing_image(tmp_path):
    coco = read_coco(write(tmp_path, changed(*IMAGE, "file_name", "a" * 5000)))
    with pytest.raises(SourceError, match="no image"):
        coco.images[0].read()


def test_images_are_read_and_checked(tmp_path):
    coco = read_coco(write(tmp_path, GOOD))
    first, second = coco.images
    with pytest.raises(SourceError, match=r"no image .*a\.png"):
        first.read()
    first.path.write_bytes(b"not a picture")
    with pytest.raises(SourceError, match=r"a\.png cannot be decoded"):
        first.read()
    cv2.imwrite(str(first.path), np.zeros((40, 61, 3), np.uint8))
    with pytest.raises(SourceError, match="61x40 px, but its annotations say 60x40"):
        first.read()
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    data = cv2.imencode(".jpg", noise)[1].tobytes()
    first.path.write_bytes(data[: len(data) // 2])  # OpenCV alone would fill the rest with grey and say nothing
    with pytest.raises(SourceError, match=r"a\.png is cut off"):
        first.read()
    (tmp_path / "sub").mkdir()
    cv2.imwrite(str(second.path), np.full((30, 20), 9, np.uint8))  # grey: read as BGR
    assert second.read().shape == (30, 20, 3)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)
places = st.sampled_from(
    [("images",), ("annotations",), ("categories",), IMAGE, ENTRY, ("categories", 0)]
    + [(*IMAGE, key) for key in GOOD["images"][0]]
    + [(*ENTRY, key) for key in GOOD["annotations"][0]]
    + [("categories", 0, key) for key in GOOD["categories"][0]]
)


@given(place=places, value=json_values)
def test_any_value_anywhere_is_read_or_refused(tmp_path_factory, place, value):
    """No other exception than AnnotationError, and what is accepted is sound."""
    path = write(tmp_path_factory.mktemp("any"), changed(*place, value))
    try:
        coco = read_coco(path)
    except AnnotationError:
        return
    check_sound(coco)


numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-200, 200)


@given(boxes=st.lists(st.tuples(numbers, numbers, numbers.map(abs), numbers.map(abs)), max_size=8))
def test_any_finite_boxes_end_up_inside_or_are_counted(tmp_path_factory, boxes):
    entries = [{"id": index, "image_id": 7, "category_id": 17, "bbox": list(box)} for index, box in enumerate(boxes)]
    coco = read_coco(write(tmp_path_factory.mktemp("boxes"), changed("annotations", entries)))
    check_sound(coco)
    assert len(coco.images[0].boxes_xyxy) + coco.dropped == len(boxes)


def check_sound(coco):
    for image in coco.images:
        boxes = image.boxes_xyxy
        assert np.isfinite(boxes).all()
        assert (boxes[:, :2] < boxes[:, 2:]).all()
        assert (boxes >= 0).all()
        assert (boxes[:, 2:] <= [image.width, image.height]).all()
        assert ((image.class_ids >= 0) & (image.class_ids < len(coco.class_names))).all()
        assert len(boxes) == len(image.class_ids) == len(image.is_crowd) == len(image.areas)
        assert np.isfinite(image.areas).all()
