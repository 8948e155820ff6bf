"""Detectors learn eight pictures by heart: all rules, losses and the loop together."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from runtime.coco import CocoAnnotations, read_coco
from runtime.conveyor.dataset import write_dataset
from training.data.augmentation import Augmentation
from training.data.conveyor import ConveyorDataset
from training.models.detectors import build_detector
from training.models.specs import spec_for
from training.schedule import TrainOptions
from training.settings import PUBLISHED, TrainSettings
from training.tasks import JointTask
from training.trainer import Trainer
from training.validation import validate

PICTURES, SEED, STEPS = 8, 11, 160
SMALL = {"min_size": 144, "max_size": 192}
FEW = {"rpn_pre_nms_top_n": 200, "rpn_post_nms_top_n": 100, "rpn_batch_per_image": 128, "box_batch_per_image": 64}
# FPN and RoI Align by torchvision's rules; one level, RoI max pooling and two fully connected layers by the paper's,
# but without the floor under the background, so that the empty belt is background too
CASES = {
    "fpn": ("conveyor", {}, TrainSettings(**FEW), 3e-3),
    "c4": (
        "conveyor_c4",
        {
            "backbone": {"returned_stages": (2,)},  # stride 8: the parts are 11 to 45 px
            "anchors": {"strides": (8,), "sizes": ((16, 32, 64),)},
            "roi_pooling": {"spatial_scales": (1 / 8,)},
            "box_head": {"kind": "two_mlp", "representation_size": 256},
        },
        replace(PUBLISHED, box_background_floor=0.0, **FEW),
        2.5e-3,
    ),
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> CocoAnnotations:
    folder = tmp_path_factory.mktemp("overfit") / "conveyor"
    return read_coco(write_dataset(folder, PICTURES, SEED, image_format="png", workers=1))


class OverAndOver(ConveyorDataset):
    """The eight pictures one after the other, as they are, whichever is asked for: every batch has all of them."""

    augmentation = Augmentation(flip="none")

    def __init__(self) -> None:
        super().__init__(PICTURES, SEED)
        self.pictures = itertools.cycle([super(OverAndOver, self).__getitem__(index) for index in range(PICTURES)])

    def __len__(self) -> int:
        return STEPS * PICTURES

    def __getitem__(self, index: int):
        return next(self.pictures)


@pytest.mark.parametrize(("name", "changes", "settings", "rate"), CASES.values(), ids=CASES)
def test_eight_pictures_are_learnt_by_heart(name, changes, settings, rate, pictures, tmp_path: Path):
    torch.manual_seed(0)
    spec = spec_for(name, class_names=pictures.class_names, input=SMALL, **changes)
    trainer = Trainer(
        model=build_detector(spec),
        spec=spec,
        samples=OverAndOver(),
        validate=lambda model: validate(model, pictures),
        options=TrainOptions(epochs=1, batch_size=PICTURES, learning_rate=rate, warmup_steps=20, workers=0),
        task=JointTask(settings),
        folder=tmp_path,
        device=torch.device("cpu"),
        notes={},
    )
    trainer.fit()
    assert trainer.history[0]["ap50"] >= 0.99
