"""Which pictures are compared: the first of a split, whatever the format, or of a plain folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from export.parity_data import load_data
from runtime.errors import AnnotationError
from tests.helpers_data import Truth, picture, write_coco, write_pictures, write_voc, write_yolo

NAMES = ("cat", "dog")
BOXES = ((2.0, 3.0, 20.0, 19.0, "dog", False), (5.0, 5.0, 30.0, 18.0, "cat", True))
TRAIN = [Truth(f"t{index}", 24, 32, BOXES) for index in range(2)]
VAL = [Truth(f"v{index}", 24, 32, BOXES) for index in range(3)]


def coco(folder: Path) -> Path:
    write_coco(folder / "train", TRAIN, NAMES)
    return write_coco(folder / "val", VAL, NAMES, first_seed=2).parents[1]


def voc(folder: Path) -> Path:
    return write_voc(folder, {"train": TRAIN, "val": VAL})


FORMATS = {
    "coco": coco,
    "voc": voc,
    "yolo": lambda folder: write_yolo(folder, {"train": TRAIN, "val": VAL}, NAMES),
    "yolo folder": lambda folder: write_yolo(folder, {"train": TRAIN, "val": VAL}, NAMES).parent,
}


@pytest.mark.parametrize("kind", FORMATS)
def test_the_first_pictures_of_the_split(tmp_path, kind):
    data = FORMATS[kind](tmp_path)
    for count, split, seeds in ((2, "val", (2, 3)), (9, "val", (2, 3, 4)), (9, "train", (0, 1)), (2, None, (2, 3))):
        if split is None and kind == "voc":
            continue
        found = load_data(data, None, split, count=count)
        assert [one.read().tolist() for one in found.pictures] == [picture(seed, 24, 32).tolist() for seed in seeds]
        assert found.annotations is not None
        assert len(found.annotations) == len(seeds)
        for image in found.annotations:
            np.testing.assert_allclose(sorted(image.boxes_xyxy.tolist()), [box[:4] for box in BOXES], atol=1e-3)
        assert (f"({split})" in found.source) == (split is not None)


def test_a_plain_folder_has_pictures_alone(tmp_path):
    write_pictures(tmp_path, VAL)
    write_pictures(tmp_path / "below", TRAIN)
    found = load_data(tmp_path, None, None, count=2)
    assert found.annotations is None
    assert [one.name for one in found.pictures] == ["v0.png", "v1.png"]
    assert np.array_equal(found.pictures[1].read(), picture(1, 24, 32))


def test_a_split_has_to_be_named_where_there_are_several(tmp_path):
    with pytest.raises(AnnotationError, match="came without a split; name one: train, val"):
        load_data(voc(tmp_path), None, None, count=2)
