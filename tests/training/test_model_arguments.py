"""The detector on a command line: what is asked for is in the spec, and what is wrong is named."""

from __future__ import annotations

import argparse
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import SpecError, UserError
from training.models.arguments import add_model_arguments, spec_of
from training.models.detectors import build_detector
from training.models.specs import spec_for


def spec_from(*words: str):
    parser = argparse.ArgumentParser()
    add_model_arguments(parser.add_argument_group("model"))
    return spec_of(parser.parse_args(list(words)), ("bolt", "nut"))


def test_the_preset_is_the_default():
    assert spec_from() == spec_for("conveyor", ("bolt", "nut"))
    assert spec_from("--architecture", "fasterrcnn_zfnet") == spec_for("fasterrcnn_zfnet", ("bolt", "nut"))


@given(min_size=st.integers(1, 900), threshold=st.floats(0, 1), sizes=st.lists(st.integers(1, 512), min_size=1))
def test_fields_are_set_from_json(min_size, threshold, sizes):
    changes = {"input.min_size": min_size, "input.max_size": 1000, "rpn.nms_threshold": threshold}
    words = [word for field, value in changes.items() for word in ("--set", f"{field}={json.dumps(value)}")]
    spec = spec_from("--architecture", "conveyor_c4", *words, "--set", f"anchors.sizes = [{sizes}]")
    assert (spec.input.min_size, spec.input.max_size) == (min_size, 1000)
    assert spec.rpn.nms_threshold == threshold
    assert spec.anchors.sizes == (tuple(map(float, sizes)),)


def test_words_need_no_quotes_and_the_last_of_two_counts():
    words = ["backbone.norm=frozen_batch_norm", "input.min_size=64", "input.min_size=96"]
    spec = spec_from(*(f"--set={word}" for word in words))
    assert spec.backbone.norm == "frozen_batch_norm"
    assert spec.input.min_size == 96
    assert spec_from("--set", 'backbone.norm="batch_norm"').backbone.norm == "batch_norm"
    assert spec_from("--set", "rpn.channels=null").rpn.channels is None


@pytest.mark.parametrize(("architecture", "size"), [("conveyor_c4", 7), ("fasterrcnn_resnet50_c4", 14)])
def test_the_pooling_of_a_detector_without_fpn_is_a_choice(architecture, size):
    by_max, by_align = (
        spec_from("--architecture", architecture, "--roi-pooling", name).roi_pooling for name in ("max", "align")
    )
    assert (by_max.op, by_max.output_size, by_max.aligned) == ("roi_max_pool", size, None)
    assert (by_align.op, by_align.output_size, by_align.aligned) == ("pyramid_roi_align", size, True)
    assert by_max.spatial_scales == by_align.spatial_scales == (1 / 16,)
    spec = spec_from("--architecture", architecture, "--roi-pooling", "align", "--set", "roi_pooling.sampling_ratio=4")
    assert spec.roi_pooling.sampling_ratio == 4


def test_what_was_set_is_built():
    words = ["--architecture", "fasterrcnn_zfnet", "--set", "box_head.representation_size=24"]
    model = build_detector(spec_from(*words, "--set", "rpn.channels=40", "--set", "anchors.sizes=[[32, 64]]"))
    assert model.roi_heads.box_head.fc7.out_features == 24
    assert model.rpn.head.cls_logits.weight.shape == (2 * 2 * 3, 40, 1, 1)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--set", "input.min_sise=3"], "no field 'min_sise': the nearest known one is 'min_size'"),
        (["--set", "inputs.min_size=3"], "no part 'inputs', the nearest is 'input'"),
        (["--set", "class_names.a=3"], "no part 'class_names'"),
        (["--set", "input.min_size"], "--set takes PART.FIELD=VALUE"),
        (["--set", "min_size=3"], "--set takes PART.FIELD=VALUE"),
        (["--set", ""], "--set takes PART.FIELD=VALUE"),
        (["--set", "anchors.sizes=[[3"], r"'\[\[3' is not JSON"),
        (["--set", "input.min_size="], "'' is not JSON"),
        (["--set", "input.min_size=small"], r"spec\.input\.min_size is 'small': expected a whole number"),
        (["--set", "input.min_size=-3"], r"spec\.input\.min_size is -3"),
        (["--set", "anchors.sizes=[[32]]"], r"spec\.anchors\.sizes .* expected 4 lists"),
        (["--set", 'input.min_size={"a": 1}'], r"spec\.input\.min_size"),
        (["--roi-pooling", "max"], "--roi-pooling is max, but conveyor pools from the levels of an FPN"),
    ],
)
def test_what_is_wrong_is_named(words, complaint):
    with pytest.raises(UserError, match=complaint):
        spec_from(*words)


def test_a_broken_contract_is_a_spec_error():
    with pytest.raises(SpecError, match="null for roi_max_pool"):
        spec_from("--set", "roi_pooling.op=roi_max_pool")
