"""The first ranges: means over pictures, shared by the readers of one value."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from runtime.errors import RunError
from tests.helpers import spread_weights
from tests.training.test_fake_quantise import SMALL, pictures_of, tiny_detector
from training.fake_quantise import quantised_layers
from training.models.detectors import build_detector
from training.models.specs import spec_for
from training.quantise_observe import observe_ranges


def test_ranges_are_means_over_pictures_and_shared_where_a_value_is():
    detector = tiny_detector()
    largest: dict[str, list[float]] = {}
    names = {"backbone/body/0/0": 0, "rpn/head/conv/0/0": 4, "roi_heads/box_head/fc7": 1}  # name: calls per picture
    for name in names:
        layer = quantised_layers(detector)[name]
        layer.register_forward_hook(
            lambda _, x, y, name=name: largest.setdefault(name, []).append(float(x[0].abs().max()))
        )
    observed = observe_ranges(detector, pictures_of(detector))
    assert observed.amax.keys() == observed.shared.keys() == quantised_layers(detector).keys()
    for name, calls in names.items():
        of_pictures = np.reshape(largest[name], (3, max(calls, 1))).max(axis=1)
        assert observed.amax[name] == pytest.approx(of_pictures.mean())
    shared = {name: first for name, first in observed.shared.items() if name != first}
    assert shared == {  # stages that the next block and the FPN read
        "backbone/fpn/inner_blocks/0/0": "backbone/body/5/block/0/0",
        "backbone/fpn/inner_blocks/1/0": "backbone/body/8/block/0/0",
    }
    assert not any(layer._forward_pre_hooks for layer in quantised_layers(detector).values())


def test_a_shared_value_has_one_range_in_resnets():
    model = spread_weights(build_detector(spec_for("conveyor_resnet50", **SMALL)), seed=2)
    shared = observe_ranges(model, pictures_of(model, 1)).shared
    assert shared["backbone/body/layer1/0/downsample/0"] == shared["backbone/body/layer1/0/conv1"]
    assert shared["backbone/body/layer1/0/conv2"] == "backbone/body/layer1/0/conv2"


def test_what_is_not_finite_is_named():
    detector = tiny_detector()
    with torch.no_grad():
        detector.backbone.body["0"][1].bias[0] = float("nan")
    with pytest.raises(RunError, match="input of backbone/body/1/block/0/0 is not finite"):
        observe_ranges(detector, pictures_of(detector))
