"""export/recall.py on a checkpoint and on the ONNX file made of it."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from export.proposals import open_proposer
from export.recall import main, measured_counts
from export.stages import run_from_image
from export.stages_onnx import OnnxStages
from runtime.backends.onnxruntime import read_spec
from runtime.command import run_command
from runtime.preprocess import boxes_to_image, preprocess
from runtime.recall import best_pairs
from tests.helpers import random_frame
from training.checkpoint import save_checkpoint


@pytest.fixture(scope="module")
def checkpoint(conveyor, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recall") / "model.pt"
    save_checkpoint(path, conveyor.model, conveyor.model.spec)
    return path


@pytest.fixture(scope="module")
def data(conveyor, tmp_path_factory) -> Path:
    """Three pictures; the objects of each are its third proposal, moved a little, and a box in the corner.

    Their class is none of the detector's.
    """
    folder = tmp_path_factory.mktemp("pictures")
    propose = open_proposer(conveyor.path)
    images, entries = [], []
    for number in range(1, 4):
        frame = random_frame(number, 240, 320)
        cv2.imwrite(str(folder / f"{number}.png"), frame)
        images.append({"id": number, "file_name": f"{number}.png", "height": 240, "width": 320})
        x1, y1, x2, y2 = propose(frame)[2].astype(float)
        for box in ((x1, y1, (x2 - x1) * 0.98, y2 - y1), (317, 237, 3, 3)):
            entry = {"id": len(entries) + 1, "image_id": number, "category_id": 1}
            entries.append({**entry, "bbox": list(box)})
    content = {"images": images, "annotations": entries, "categories": [{"id": 1, "name": "whatever"}]}
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


def test_both_forms_propose_the_same(conveyor, checkpoint):
    frame = random_frame(7, 240, 320)
    of_checkpoint, of_onnx = (open_proposer(path, threads=1)(frame) for path in (checkpoint, conveyor.path))
    assert of_onnx.dtype == np.float32
    assert len(of_onnx) == pytest.approx(len(of_checkpoint), abs=2)
    assert (best_pairs(of_checkpoint, of_onnx) > 0.99).mean() > 0.95


def test_they_are_those_of_the_stages_in_image_px(conveyor):
    spec = read_spec(conveyor.path)
    prepared = preprocess([random_frame(8, 240, 320)], spec)
    values = run_from_image(OnnxStages(onnx.load(conveyor.path), spec, threads=1), prepared)
    found = open_proposer(conveyor.path, threads=1)(random_frame(8, 240, 320))
    np.testing.assert_allclose(found, boxes_to_image(values.proposals, prepared.im_info[0]), atol=0.05)


def test_the_command(conveyor, checkpoint, data, tmp_path, capsys):
    words = [checkpoint, conveyor.path, "--data", data, "--counts", 1, 2, 3, 9999, "--output", tmp_path]
    assert run_command(main, [*map(str, words), "--threads", "1"]) == 0
    out = capsys.readouterr().out
    assert "3 images, 6 objects" in out
    most = conveyor.spec.rpn.post_nms_top_n
    content = json.loads((tmp_path / "recall.json").read_text())
    for one in content["artifacts"]:
        assert one["counts"] == [1, 2, 3, most]
        half, at_70 = one["ious"].index(0.5), one["ious"].index(0.7)
        assert one["recall"][2][half] >= 0.5  # the third proposal of each picture
        assert one["recall"][1][at_70] < 0.5
    assert content["artifacts"][0]["name"] == "model.pt"
    assert cv2.imread(str(tmp_path / "recall.png")).std() > 5


def test_numbers_of_proposals():
    assert measured_counts((300, 10, 10, 1000), 500) == (10, 300, 500)
    assert measured_counts((300,), 100) == (100,)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["model.plan"], "does not show its proposals"),
        (["nowhere.onnx"], "nowhere.onnx"),
        (["model.onnx", "--counts", "0"], "--counts 0"),
        (["model.onnx", "--threads", "0"], "--threads 0"),
        (["model.onnx", "--split", "test"], "--split test came without --data"),
    ],
)
def test_wrong_arguments(words, sentence, tmp_path, capsys):
    assert run_command(main, [*words, "--output", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
