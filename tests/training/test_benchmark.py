"""The training benchmark: equal weights and pictures for both, numbers and a chart; it refuses what it cannot do."""

from __future__ import annotations

import json

import cv2
import pytest
import torch

from runtime.errors import UserError
from training import benchmark
from training.settings import TrainSettings

TINY = ["--architecture", "conveyor", "--size", "96x128", "--batch-size", "2", "--steps", "1", "--rounds", "1"]


def test_it_times_both_and_writes_numbers_and_a_chart(tmp_path, capsys):
    assert benchmark.main([*TINY, "--output", str(tmp_path / "training.json")]) == 0
    content = json.loads((tmp_path / "training.json").read_text())
    assert set(content["images_per_second"]) == {"EdgeRCNN", "torchvision, float32"}
    assert all(rate > 0 for rate in content["images_per_second"].values())
    ours, peer = (content["seconds_per_step"][name][0] for name in ("EdgeRCNN", "torchvision, float32"))
    assert content["ratio_to_best_of_ours"]["torchvision, float32"] == pytest.approx(peer / ours)
    assert "ours is faster" in capsys.readouterr().out
    assert cv2.imread(str(tmp_path / "training.png")).std() > 5  # something is drawn


def test_both_have_the_same_losses_on_the_same_pictures():
    """So that the times are of equal work: objectness of all anchors and no sampling is left to chance."""
    arguments = benchmark.build_parser().parse_args(TINY)
    model, batch = benchmark.prepared(arguments)
    peer = benchmark.torchvision_detector(model).train()
    images = [benchmark.as_picture(image, peer) for image in batch.images]
    targets = [{"boxes": one.boxes, "labels": one.labels} for one in batch.targets]
    torch.manual_seed(0)
    theirs = peer(images, targets)
    ours = model.train().losses(batch.images, batch.im_info, batch.targets, TrainSettings())
    for value, name in zip(ours, ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg")):
        assert float(value.detach()) == pytest.approx(float(theirs[name].detach()), rel=0.35), name  # other samples


@pytest.mark.parametrize("name", ["--steps", "--rounds", "--batch-size"])
def test_numbers_below_one_are_refused(name):
    with pytest.raises(UserError, match=f"{name} is 0: expected 1 or more"):
        benchmark.main([*TINY, name, "0"])


def test_a_size_that_is_none_is_refused():
    with pytest.raises(UserError, match="--size 12: expected height x width"):
        benchmark.main([*TINY, "--size", "12"])
