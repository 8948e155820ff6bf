"""The command: its numbers, its advice, and that the options it prints are taken by the trainer."""

from __future__ import annotations

import json
import shlex

import cv2
import numpy as np
import pytest

from runtime.errors import AnnotationError, UserError
from training.anchor_statistics import main
from training.models.arguments import spec_of
from training.models.specs import spec_for
from training.train import build_parser as train_parser


@pytest.fixture
def wide_boxes(tmp_path):
    """A COCO file of boxes 90 x 30 and 45 x 15 px in pictures that the conveyor's detector does not resize."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(1, 21):
        images.append({"id": number, "file_name": f"{number}.png", "height": 288, "width": 384})
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.zeros((288, 384, 3), np.uint8))
        for width, height in ((90, 30), (45, 15)):
            x, y = rng.uniform(0, 384 - width), rng.uniform(0, 288 - height)
            width, height = width * rng.uniform(0.95, 1.05), height * rng.uniform(0.95, 1.05)
            box = {"id": len(annotations) + 1, "image_id": number, "category_id": 1, "bbox": [x, y, width, height]}
            annotations.append({**box, "area": width * height, "iscrowd": 0})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "bar"}]}
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    return tmp_path / "boxes.json"


def run(capsys, *words):
    assert main([str(word) for word in words]) == 0
    return capsys.readouterr().out


def test_wide_boxes_get_wide_anchors(wide_boxes, tmp_path, capsys):
    output = tmp_path / "out"
    text = run(capsys, "--data", wide_boxes, "--output", output)
    content = json.loads((output / "anchors.json").read_text())
    assert (content["boxes"], content["images"], content["is_better"]) == (40, 20, True)
    assert content["aspect_ratio"]["p50"] == pytest.approx(1 / 3, rel=0.05)
    assert content["width_px"]["p5"] == pytest.approx(45, rel=0.06)
    assert content["area_shares"]["small"] == 0.5
    assert sum(content["area_shares"].values()) == pytest.approx(1)
    assert content["suggested"]["mean_best_iou"] > content["present"]["mean_best_iou"] + 0.1
    assert max(content["suggested"]["aspect_ratios"][0]) < 0.4
    assert (output / "anchors.png").read_bytes().startswith(b"\x89PNG")
    options = [word for line in text.splitlines() if line.startswith("  --set") for word in shlex.split(line)]
    spec = spec_of(train_parser().parse_args(options), ("bar",))
    assert [list(level) for level in spec.anchors.sizes] == content["suggested"]["sizes"]
    assert [list(level) for level in spec.anchors.aspect_ratios] == content["suggested"]["aspect_ratios"]
    again = run(capsys, "--data", wide_boxes, "--output", tmp_path / "again", "--no-charts", *options)
    assert "keep them" in again
    assert not (tmp_path / "again" / "anchors.png").exists()


def test_the_conveyors_detector_by_default(tmp_path, capsys):
    text = run(capsys, "--count", "6", "--output", tmp_path)
    content = json.loads((tmp_path / "anchors.json").read_text())
    assert content["images"] == 6
    assert content["architecture"] == "conveyor"
    assert content["present"]["sizes"] == [list(sizes) for sizes in spec_for("conveyor").anchors.sizes]
    assert f"{content['boxes']} boxes in 6 images" in text


def test_data_without_boxes_are_refused(wide_boxes, tmp_path):
    content = json.loads(wide_boxes.read_text())
    wide_boxes.write_text(json.dumps(content | {"annotations": []}))
    with pytest.raises(AnnotationError, match="has no objects"):
        main(["--data", str(wide_boxes), "--output", str(tmp_path / "out")])


@pytest.mark.parametrize("words", [("--seed", "-1"), ("--count", "0")])
def test_wrong_numbers_get_one_sentence(tmp_path, words):
    with pytest.raises(UserError, match=f"{words[0]} is {words[1]}: expected"):
        main(["--output", str(tmp_path), *words])


def test_a_wrong_seed_of_own_data(wide_boxes, tmp_path):
    with pytest.raises(UserError, match="--seed is -1"):
        main(["--data", str(wide_boxes), "--output", str(tmp_path), "--seed", "-1"])
