"""Calibration images out of COCO, Pascal VOC and YOLO data: those of the split, with their objects."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from calib import methods
from calib.calibrate import main
from calib.harm import measuring_images
from calib.images import read_calibration_images as read
from runtime.annotations import read_annotations
from runtime.command import run_command
from runtime.detector import open_detector
from runtime.errors import AnnotationError, UserError
from runtime.evaluation import evaluate_detector
from tests.helpers import random_frame
from tests.helpers_data import Truth, write_coco, write_voc, write_yolo

NAMES = ("cat", "dog")
BOXES = ((2.0, 3.0, 20.0, 19.0, "dog", False), (5.0, 5.0, 30.0, 30.0, "cat", True))
TRAIN = [Truth(f"t{index:02d}", 48, 64, BOXES) for index in range(5)]
VAL = [Truth(f"v{index:02d}", 48, 64, BOXES) for index in range(40)]


def with_pictures(folder: Path) -> None:
    """Something to see in place of the noise that the pictures have."""
    for seed, path in enumerate(sorted(folder.rglob("*.png"))):
        assert cv2.imwrite(str(path), random_frame(seed, 48, 64))


def coco(folder: Path) -> Path:
    write_coco(folder / "train", TRAIN, NAMES)
    return write_coco(folder / "val", VAL, NAMES).parents[1]


FORMATS = {
    "coco": coco,
    "voc": lambda folder: write_voc(folder, {"train": TRAIN, "val": VAL}),
    "yolo": lambda folder: write_yolo(folder, {"train": TRAIN, "val": VAL}, NAMES),
    "yolo folder": lambda folder: write_yolo(folder, {"train": TRAIN, "val": VAL}, NAMES).parent,
}


@pytest.mark.parametrize("kind", FORMATS)
def test_the_images_of_the_split_and_no_others(tmp_path, kind):
    data = FORMATS[kind](tmp_path)
    with_pictures(tmp_path)
    chosen = read(data, None, "val", count=32, class_names=NAMES[::-1])
    assert len(chosen) == 32
    assert chosen.annotations is not None
    assert chosen.rest is not None
    both = [*chosen.annotations, *chosen.rest]
    assert sorted(image.path.stem for image in both) == [truth.name for truth in VAL]
    assert [image.path for image in chosen.annotations] == list(chosen.paths)
    for image in both:
        boxes = sorted(image.boxes_xyxy.tolist())
        np.testing.assert_allclose(boxes, [box[:4] for box in BOXES], atol=1e-3)
        assert image.is_difficult.tolist() == ([False, True] if kind == "voc" else [False, False])
    few = read(data, None, "train", count=32, class_names=NAMES, force=True)
    assert [path.stem for path in few.paths] == [truth.name for truth in TRAIN]
    if kind != "voc":  # whose split has to be named
        assert read(data, None, count=32, class_names=NAMES).paths == chosen.paths


@pytest.mark.parametrize("kind", FORMATS)
def test_every_object_is_measured(tmp_path, kind):
    """Those that VOC marks as difficult too, as COCO's AP counts them in `edgercnn eval`."""
    data = FORMATS[kind](tmp_path)
    with_pictures(tmp_path)
    images = read(data, None, "val", count=32, class_names=NAMES)
    measured, annotated = measuring_images(images, 8, NAMES)
    assert annotated
    assert {image.path for image in measured}.isdisjoint(images.paths)
    assert [len(image.boxes_xyxy) for image in measured] == [2] * 8


def refused(data: Path, folder: Path | None = None, split: str | None = None, error=AnnotationError) -> str:
    with pytest.raises(error) as caught:
        read(data, folder, split, count=32, class_names=NAMES)
    return str(caught.value)


def test_refusals_are_those_of_training(tmp_path):
    voc = FORMATS["voc"](tmp_path / "voc")
    yolo = FORMATS["yolo"](tmp_path / "yolo")
    assert "came without a split; name one: train, val" in refused(voc)
    assert "has no split 'test'" in refused(voc, None, "test")
    assert "has no split 'test'" in refused(yolo, None, "test")
    assert "means nothing" in refused(yolo, tmp_path, "val")
    assert "is one COCO file" in refused(coco(tmp_path / "coco") / "val" / "annotations.json", None, "val")
    assert "has no split 'val'" in refused(tmp_path / "yolo" / "images" / "train", None, "val")
    assert "--split val came without --data" in refused(None, None, "val", UserError)
    other = write_yolo(tmp_path / "other", {"val": VAL}, ("cat", "dog", "cow"))
    assert "does not know cow" in refused(other)


def test_ap_of_voc_data_is_that_of_the_evaluation(demo, belt, calibration_cache, tmp_path, monkeypatch):
    """The budget of --max-drop is in the units of `edgercnn eval`."""
    monkeypatch.setenv("EDGERCNN_CACHE", str(calibration_cache))
    monkeypatch.chdir(tmp_path)
    images = read_annotations(belt).images[:6]
    names = read_annotations(belt).class_names
    truths = [
        Truth(
            image.path.stem,
            image.height,
            image.width,
            [
                (*box, names[class_id], index == 0)
                for index, (box, class_id) in enumerate(zip(image.boxes_xyxy.tolist(), image.class_ids))
            ],
        )
        for image in images
    ]
    voc = write_voc(tmp_path / "voc", {"train": truths[:3], "val": truths[3:]})
    (voc / "classes.txt").write_text("\n".join(names))
    for image in images:
        shutil.copy(image.path, voc / "JPEGImages")
    few = ["--images", "3", "--force", "--measure", "3", "--threads", "1"]
    words = ["--onnx", str(demo.path), "--data", str(voc), "--output", "out.onnx", "--precision", "fp16", *few]
    assert run_command(main, [*words, "--split", "val"]) == 0
    harm = json.loads(Path("output/calibration/calibration.json").read_text())["harm"]
    with open_detector(demo.path, threads=1) as detector:
        expected = evaluate_detector(detector, read_annotations(voc, split="val")).ap
    assert 0.3 < expected <= 1
    assert harm["ap"] + harm["ap_drop"] == pytest.approx(expected, abs=1e-6)


def test_methods_are_measured_on_any_data(demo, belt, calibration_cache, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("EDGERCNN_CACHE", str(calibration_cache))
    voc = write_voc(tmp_path / "voc", {"train": TRAIN, "val": VAL})
    words = ["--onnx", str(demo.path), "--data", str(belt), "--output", str(tmp_path / "methods.json")]
    for more, sentence in (
        (["--measure-on", str(voc)], "came without a split; name one: train, val"),
        (["--measure-on", str(voc), "--measure-split", "val"], "has other classes than the detector"),
        (["--measure-split", "val"], "--measure-split val came without --measure-on"),
        (["--split", "val"], "has no split 'val'"),
    ):
        assert run_command(methods.main, [*words, *more]) == 2
        assert sentence in capsys.readouterr().err
