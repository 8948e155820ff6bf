"""What losses ask of a new detector: dropout of fc6 and fc7, and a prior for focal loss."""

from __future__ import annotations

import pytest
import torch

from training.data.batch import to_batch
from training.data.conveyor import ConveyorDataset
from training.initial_weights import adapt_to_settings
from training.models.detectors import build_detector
from training.models.specs import spec_for
from training.settings import TrainSettings

SMALL = {"input": {"min_size": 96, "max_size": 128}}


@pytest.mark.parametrize("name", ["conveyor", "conveyor_c4"])  # one logit per anchor, two scores per anchor
def test_focal_loss_begins_with_a_rare_object(name):
    torch.manual_seed(0)
    model = build_detector(spec_for(name, **SMALL))
    samples = ConveyorDataset(2, seed=3)
    batch = to_batch([samples[0], samples[1]], model.spec)
    settings = TrainSettings(rpn_objectness_loss="focal")
    before = model.losses(batch.images, batch.im_info, batch.targets, settings).rpn_objectness
    adapt_to_settings(model, settings)
    objectness, _ = model.rpn(model.backbone(batch.images))
    assert float(objectness[0].detach().sigmoid().mean()) == pytest.approx(0.01, rel=0.2)
    after = model.losses(batch.images, batch.im_info, batch.targets, settings).rpn_objectness
    assert float(after.detach()) < 0.3 * float(before.detach())


def test_log_loss_changes_no_weight():
    model = build_detector(spec_for("conveyor", **SMALL))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adapt_to_settings(model, TrainSettings())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_dropout_is_a_matter_of_training():
    model = build_detector(spec_for("conveyor", **SMALL))
    adapt_to_settings(model, TrainSettings(box_dropout=0.5))
    head, pooled = model.roi_heads.box_head, torch.rand(3, 96, 7, 7)
    assert not torch.equal(head(pooled), head(pooled))
    head.eval()
    assert torch.equal(head(pooled), head(pooled))
    adapt_to_settings(model.train(), TrainSettings())
    assert torch.equal(head(pooled), head(pooled))
