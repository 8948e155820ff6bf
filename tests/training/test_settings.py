"""The settings of matching, sampling and losses: what the paper says, what a command line gives, what is refused."""

from __future__ import annotations

import argparse
import math
from dataclasses import fields, replace

import pytest

from runtime.errors import UserError
from training.settings import PUBLISHED, TrainSettings, add_settings_arguments, train_settings


def parsed(*arguments: str) -> TrainSettings:
    parser = argparse.ArgumentParser()
    add_settings_arguments(parser.add_argument_group())
    return train_settings(parser.parse_args(arguments))


def test_published_is_what_the_papers_say():
    """Ren et al. (2015), sections 3.1.2, 3.1.3 and 3.3; Girshick (2015), section 2.3; their programs' top 12000."""
    papers = TrainSettings(
        rpn_pre_nms_top_n=12000,
        rpn_post_nms_top_n=2000,
        rpn_ignore_outside=True,
        rpn_foreground_iou=0.7,
        rpn_background_iou=0.3,
        rpn_batch_per_image=256,
        rpn_positive_fraction=0.5,
        rpn_objectness_loss="log",
        rpn_box_loss="smooth_l1",
        rpn_smooth_l1_beta=1.0,
        rpn_box_weight=10.0,
        rpn_normalisation="published",
        box_foreground_iou=0.5,
        box_background_iou=0.5,
        box_background_floor=0.1,
        box_batch_per_image=128,
        box_positive_fraction=0.25,
        box_loss="smooth_l1",
        box_smooth_l1_beta=1.0,
        box_weight=1.0,
        box_dropout=0.5,
    )
    assert papers == PUBLISHED


def test_a_command_line_without_options_samples_less_than_torchvision():
    few = {"rpn_pre_nms_top_n": 300, "rpn_post_nms_top_n": 200, "rpn_batch_per_image": 128, "box_batch_per_image": 64}
    assert parsed() == TrainSettings(**few)
    more = replace(TrainSettings(**few), rpn_post_nms_top_n=400, box_batch_per_image=200)
    assert parsed("--rois-per-image", "200") == more


def test_published_and_what_stands_beside_it():
    assert parsed("--published") == PUBLISHED
    given = parsed("--published", "--rois-per-image", "32", "--no-rpn-ignore-outside", "--box-background-floor", "0")
    assert given == replace(PUBLISHED, box_batch_per_image=32, rpn_ignore_outside=False, box_background_floor=0.0)


def test_commands_with_few_of_the_options_have_settings_too():
    assert train_settings(argparse.Namespace(rois_per_image=64)) == parsed()


OTHER_VALUES = {"rpn_objectness_loss": "focal", "rpn_box_loss": "giou", "box_loss": "giou"}
OTHER_VALUES |= {"rpn_normalisation": "published", "rpn_foreground_iou": 0.75, "box_foreground_iou": 0.75}


@pytest.mark.parametrize("name", [field.name for field in fields(TrainSettings)])
def test_every_setting_is_an_option(name):
    if name == "box_batch_per_image":
        return
    if name == "rpn_ignore_outside":
        assert parsed("--rpn-ignore-outside").rpn_ignore_outside
        return
    before = getattr(parsed(), name)
    value = OTHER_VALUES.get(name, 7 if isinstance(before, int) else 0.375)
    settings = parsed(f"--{name.replace('_', '-')}", str(value))
    assert getattr(settings, name) == value != before


BAD = [
    ({"rpn_foreground_iou": 1.5}, "--rpn-foreground-iou is 1.5: expected a number from"),
    ({"rpn_foreground_iou": 0.0}, "--rpn-foreground-iou is 0.0"),
    ({"rpn_background_iou": 0.8}, "--rpn-background-iou is 0.8: expected at most --rpn-foreground-iou, which is 0.7"),
    ({"box_background_floor": 0.6}, "--box-background-floor is 0.6: expected at most --box-background-iou"),
    ({"box_batch_per_image": 0}, "--rois-per-image is 0: expected a number at least 1"),
    ({"rpn_batch_per_image": -3}, "--rpn-batch-per-image is -3"),
    ({"rpn_smooth_l1_beta": math.nan}, "--rpn-smooth-l1-beta is nan"),
    ({"rpn_focal_gamma": -1.0}, "--rpn-focal-gamma is -1.0"),
    ({"ignore_overlap": 1.0}, "--ignore-overlap is 1.0: expected a number from 0.0 to 0.99"),
    ({"box_loss": "l2"}, "--box-loss is 'l2': expected smooth_l1 or giou"),
    ({"rpn_objectness_loss": "hinge"}, "--rpn-objectness-loss is 'hinge': expected log or focal"),
]


@pytest.mark.parametrize(("values", "words"), BAD, ids=[words for _, words in BAD])
def test_values_out_of_range_are_refused(values, words):
    with pytest.raises(UserError) as caught:
        TrainSettings(**values)
    assert words in str(caught.value)
