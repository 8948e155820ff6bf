"""`python export/parity.py` on what cannot be compared: one sentence, exit code 2, nothing written."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from calib.artifact import spec_of_model
from export import parity as command
from runtime.command import run_command
from tests.export.parity_files import (
    change_spec,
    demo_model,
    parity,
    saved,
    write_artifacts,
    write_pictures,
)
from tests.helpers_data import Truth, write_voc

TRUTHS = [Truth("a", 20, 30, ((2.0, 3.0, 9.0, 9.0, "bolt", False),))]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """See write_artifacts."""
    return write_artifacts(tmp_path_factory.mktemp("parity"))


def other_classes(folder: Path) -> Path:
    model = demo_model()
    change_spec(model, class_names=("cat", *spec_of_model(model).class_names[1:]))
    return saved(model, folder / "cats.onnx")


def other_network(folder: Path) -> Path:
    model = demo_model()
    backbone = dataclasses.replace(spec_of_model(model).backbone, name="resnet50")
    change_spec(model, backbone=backbone)
    return saved(model, folder / "resnet.onnx")


def other_architecture(folder: Path) -> Path:
    model = demo_model()
    change_spec(model, architecture="fasterrcnn_resnet50_fpn")
    return saved(model, folder / "other.onnx")


def other_canvas(folder: Path) -> Path:
    model = demo_model()
    change_spec(model, input=dataclasses.replace(spec_of_model(model).input, height=224))
    return saved(model, folder / "small.onnx")


def empty_folder(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def truncated(folder: Path) -> Path:
    path = folder / "cut.onnx"
    path.write_bytes((folder / "model.onnx").read_bytes()[:-1000])
    return path


# name: (what makes the second artifact, what the one sentence says)
BAD = {
    "missing": (lambda folder: folder / "none.onnx", "none.onnx does not exist"),
    "other suffix": (lambda folder: folder / "notes.txt", "notes.txt has the suffix .txt"),
    "folder without artifacts": (empty_folder, "empty holds no artifact"),
    "only one": (lambda folder: folder / "model.onnx", "give two or more"),
    "other classes": (other_classes, r"cats.onnx detects cat, .*one detector, with the same list of classes"),
    "other architecture": (other_architecture, "two networks: the architecture is fasterrcnn_resnet50_fpn in the one"),
    "other backbone": (other_network, "two networks: the backbone is name resnet50 in the one and name mobilenet"),
    "other canvas": (other_canvas, "small.onnx has a canvas of 224x384, and .*model.onnx has one of 288x384"),
    "truncated": (truncated, "cut.onnx is cut off"),
}


@pytest.mark.parametrize("name", BAD)
def test_artifacts_that_cannot_be_compared(files, tmp_path, capsys, name):
    make, complaint = BAD[name]
    shutil.copy(files / "model.onnx", tmp_path)
    output = tmp_path / "out"
    code, report = parity(tmp_path / "model.onnx", make(tmp_path), "--data", files / "pictures", output)
    error = capsys.readouterr().err.strip()
    assert (code, report) == (2, {})
    assert re.search(complaint, error), error
    assert error.count("\n") == 0
    assert list(output.iterdir()) == []


def broken_picture(folder: Path) -> list[object]:
    (folder / "broken").mkdir()
    (folder / "broken" / "a.jpg").write_bytes(b"no picture")
    return ["--data", folder / "broken"]


def other_data(folder: Path) -> list[object]:
    image = {"id": 1, "file_name": "a.png", "height": 8, "width": 8}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0}
    content = {"images": [image], "annotations": [box], "categories": [{"id": 1, "name": "dog"}]}
    (folder / "dogs.json").write_text(json.dumps(content))
    cv2.imwrite(str(folder / "a.png"), np.zeros((8, 8, 3), np.uint8))
    return ["--data", folder / "dogs.json"]


def no_boxes(folder: Path) -> list[object]:
    """The second of two pictures has a box."""
    images = [{"id": index, "file_name": f"{index}.png", "height": 8, "width": 8} for index in (1, 2)]
    box = {"id": 1, "image_id": 2, "category_id": 1, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0}
    content = {"images": images, "annotations": [box], "categories": [{"id": 1, "name": "bolt"}]}
    (folder / "late.json").write_text(json.dumps(content))
    for image in images:
        cv2.imwrite(str(folder / image["file_name"]), np.zeros((8, 8, 3), np.uint8))
    return ["--data", folder / "late.json", "--count", 1]


# name: (what makes the options, what the one sentence says)
BAD_OPTIONS = {
    "pictures without boxes": (no_boxes, "the first 1 images of"),
    "a broken picture": (broken_picture, "a.jpg cannot be decoded as an image"),
    "a folder without pictures": (
        lambda folder: ["--data", empty_folder(folder)],
        "has no images: expected files with a name in .jpg, .jpeg, .png",
    ),
    "missing data": (lambda folder: ["--data", folder / "none.json"], "none.json"),
    "data of other classes": (other_data, "dogs.json has other classes than the detector"),
    "images without data": (lambda folder: ["--images", folder], "came without --data"),
    "images without data, by their old name": (lambda folder: ["--images-folder", folder], "came without --data"),
    "a split without data": (lambda folder: ["--split", "val"], "--split val came without --data"),
    "no such split": (
        lambda folder: ["--data", write_voc(folder / "voc", {"train": TRUTHS}), "--split", "val"],
        "has no split 'val'",
    ),
    "no split of several": (
        lambda folder: ["--data", write_voc(folder / "voc", {"train": TRUTHS})],
        "came without a split; name one: train",
    ),
    "images of a folder": (
        lambda folder: ["--data", write_pictures(folder / "p"), "--images-folder", folder],
        "is a plain folder of images, without annotations",
    ),
    "no images": (lambda folder: ["--count", 0], "--count 0: give a whole number of at least 1"),
    "no stage images": (lambda folder: ["--stage-images", -1], "--stage-images -1: give a whole number"),
    "no threads": (lambda folder: ["--threads", 0], "--threads"),
    "negative frames": (lambda folder: ["--frames", -1], "--frames -1"),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_options_that_cannot_be(files, tmp_path, capsys, name):
    make, complaint = BAD_OPTIONS[name]
    arguments = ["--threads", 1, files / "model.onnx", files / "half.onnx", *make(tmp_path)]
    code = run_command(command.main, [str(value) for value in [*arguments, "--output", tmp_path / "out"]])
    error = capsys.readouterr().err.split("\r")[-1].strip()
    assert code == 2
    assert complaint in error
    assert error.count("\n") == 0


def test_an_output_that_cannot_be_written(files, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    code, _ = parity(files / "model.onnx", files / "half.onnx", tmp_path / "file")
    assert code == 2
    assert "cannot write" in capsys.readouterr().err
