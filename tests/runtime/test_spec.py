"""DetectorSpec: what goes in comes out, the digest is of the facts, and every wrong field is named."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import SpecError
from runtime.spec import DetectorSpec
from tests.helpers_spec import spec_mapping

CHECKPOINT = Path(__file__).resolve().parents[2] / "assets" / "conveyor.pt"


def spec_from(mapping: dict[str, Any]) -> DetectorSpec:
    return DetectorSpec.from_json(json.dumps(mapping))


def leaves(mapping: dict[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The path of every field, nested records included."""
    found = []
    for key, value in mapping.items():
        found.append((*path, key))
        if isinstance(value, dict):
            found += leaves(value, (*path, key))
    return found


def parent_of(mapping: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    for key in path[:-1]:
        mapping = mapping[key]
    return mapping


def shuffled(value: Any, generator: random.Random) -> Any:
    if not isinstance(value, dict):
        return value
    keys = list(value)
    generator.shuffle(keys)
    return {key: shuffled(value[key], generator) for key in keys}


ALL_PATHS = leaves(spec_mapping())
thresholds = st.floats(0.0, 1.0)
names = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=5)


@given(names, thresholds, thresholds, st.integers(1, 1000), st.integers(1, 40), st.integers(1, 40))
def test_round_trip(class_names, nms, score, detections, rows, columns):
    mapping = spec_mapping()
    mapping["class_names"] = class_names
    mapping["rpn"]["nms_threshold"] = nms
    mapping["detection"] |= {"score_threshold": score, "max_detections": detections}
    mapping["input"] |= {"height": 32 * rows, "width": 32 * columns}
    spec = spec_from(mapping)
    again = DetectorSpec.from_json(spec.to_json())
    assert again == spec
    assert again.digest() == spec.digest()
    assert json.loads(spec.to_json()) == mapping


@given(st.integers())
def test_digest_is_stable_across_key_order(seed):
    mapping = spec_mapping()
    assert spec_from(shuffled(mapping, random.Random(seed))).digest() == spec_from(mapping).digest()


def test_digest_does_not_tell_1_from_1_point_0():
    mapping = spec_mapping()
    mapping["rpn"]["box_coder_weights"] = [1, 1, 1, 1]
    assert spec_from(mapping).digest() == spec_from(spec_mapping()).digest()


@given(thresholds.filter(lambda value: value != 0.5))
def test_digest_changes_with_a_fact(threshold):
    mapping = spec_mapping()
    mapping["detection"]["nms_threshold"] = threshold
    assert spec_from(mapping).digest() != spec_from(spec_mapping()).digest()


@pytest.mark.parametrize("path", ALL_PATHS, ids=".".join)
def test_a_missing_field_is_named(path):
    mapping = spec_mapping()
    del parent_of(mapping, path)[path[-1]]
    with pytest.raises(SpecError, match=rf"spec\.{'.'.join(path)} is missing"):
        spec_from(mapping)


@pytest.mark.parametrize("path", ALL_PATHS, ids=".".join)
def test_an_unknown_field_is_named_with_its_nearest(path):
    mapping = spec_mapping()
    parent = parent_of(mapping, path)
    misspelt = path[-1] + "x"
    parent[misspelt] = parent[path[-1]]
    with pytest.raises(SpecError, match=rf"unknown field '{misspelt}': the nearest known one is '{path[-1]}'"):
        spec_from(mapping)


@pytest.mark.parametrize("path", ALL_PATHS, ids=".".join)
@given(wrong=st.sampled_from([{"a": 1}, "", float("nan"), float("inf"), -7, [], [[]], [-1.0], 1e9 + 0.5, True]))
def test_a_wrong_value_is_refused_by_name_or_kept_as_it_is(path, wrong):
    """No value is bent to fit: it is in the spec as given, or the error names the field (or its record)."""
    mapping = spec_mapping()
    parent_of(mapping, path)[path[-1]] = wrong
    try:
        spec = spec_from(mapping)
    except SpecError as error:
        assert any(".".join(("spec", *path[:end])) in str(error) for end in range(1, len(path) + 1))  # noqa: PT017
        assert str(error).endswith(".")  # noqa: PT017
    else:
        kept: Any = json.loads(spec.to_json())
        for key in path:
            kept = kept[key]
        assert kept == wrong


WRONG_VALUES = [  # path, value, the words that must be in the sentence
    (("schema_version",), 2, "spec.schema_version is 2"),
    (("class_names",), [], "spec.class_names"),
    (("class_names",), ["bolt", ""], r"spec.class_names\[1\]"),
    (("class_names",), "bolt", "expected a list"),
    (("background_index",), 1, "spec.background_index is 1"),
    (("input", "height"), 65, "spec.input.height is 65: expected a multiple of the divisor 32"),
    (("input", "height"), None, "both or neither"),
    (("input", "mean"), [0.5, 0.5], "spec.input.mean has 2 entries: expected 3"),
    (("input", "std"), [0.5, 0.5, 0.0], "spec.input.std"),
    (("input", "color_order"), "bgr", "one of 'rgb'"),
    (("input", "max_size"), 10, "no less than min_size"),
    (("backbone", "name"), "vgg", "spec.backbone.name is 'vgg'"),
    (("backbone", "returned_stages"), [4, 3], "ascending"),
    (("anchors", "sizes"), [[32.0], [64.0]], "3 lists"),
    (("anchors", "sizes"), [[16.0], [32.0, 48.0], [64.0]], "same number of anchors"),
    (("anchors", "strides"), [16, 32], "spec.anchors"),
    (("rpn", "nms_threshold"), 1.5, "spec.rpn.nms_threshold is 1.5: expected a number from 0 to 1"),
    (("rpn", "pre_nms_top_n"), 100.5, "expected a whole number"),
    (("rpn", "pre_nms_top_n"), True, "expected a whole number"),
    (("roi_pooling", "levels"), [0, 3], "spec.roi_pooling.levels"),
    (("roi_pooling", "spatial_scales"), [0.0625, 0.0625], "each half of the one before"),
    (("roi_pooling", "spatial_scales"), [0.06, 0.03], "powers of two"),
    (("box_head", "conv_channels"), [8], "spec.box_head.conv_channels"),
    (("detection", "score_threshold"), "0.5", "expected a finite number"),
    (("outputs", "detection_boxes"), "detection_scores", "four different names"),
    (("precision",), "fp4", "spec.precision"),
    (("parent_digest",), "abc", "spec.parent_digest"),
]


@pytest.mark.parametrize(("path", "value", "words"), WRONG_VALUES)
def test_wrong_fields_are_refused(path, value, words):
    mapping = spec_mapping()
    parent_of(mapping, path)[path[-1]] = value
    with pytest.raises(SpecError, match=words):
        spec_from(mapping)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '"spec"', None, b"\xff"])
def test_what_is_no_spec_is_refused(text):
    with pytest.raises(SpecError):
        DetectorSpec.from_json(text)


def plan_mapping() -> dict[str, Any]:
    layers = {"int8": ["body/0/Conv", "body/1/Conv"], "fp16": ["fc/Gemm"], "fp32": []}
    return {"flavour": "tensorrt", "method": "entropy", "images": 128, "images_digest": "0" * 64, **layers}


def test_a_spec_without_a_plan_says_nothing_of_it():
    """So that digests of older files, checkpoints among them, are what they were."""
    spec = spec_from(spec_mapping())
    assert spec.precision_plan is None
    assert "precision_plan" not in spec.to_json()
    assert spec_from({**spec_mapping(), "precision_plan": None}).digest() == spec.digest()
    assert spec.replace(precision_plan=plan_mapping()).replace(precision_plan=None).digest() == spec.digest()


def test_the_bundled_checkpoint_has_the_digest_it_was_written_with():
    checkpoint = torch.load(CHECKPOINT, map_location="cpu", weights_only=True)
    assert DetectorSpec.from_json(checkpoint["spec"]).digest() == checkpoint["digest"]


layer_names = st.lists(st.text(min_size=1, max_size=8), unique=True, max_size=9)


@given(layer_names, st.integers(0, 9), st.integers(0, 9), st.sampled_from(["mixed", "int8", "fp16"]))
def test_a_plan_goes_round(layers, first, second, precision):
    low, high = sorted((first, second))
    plan = {**plan_mapping(), "int8": layers[:low], "fp16": layers[low:high], "fp32": layers[high:]}
    mapping = {**spec_mapping(), "precision": precision, "precision_plan": plan}
    spec = spec_from(mapping)
    assert spec.precision_plan is not None
    assert spec.precision_plan.int8 == tuple(layers[:low])
    assert json.loads(spec.to_json()) == mapping
    again = DetectorSpec.from_json(spec.to_json())
    assert again == spec
    assert again.digest() == spec.digest() != spec_from({**mapping, "precision_plan": None}).digest()


@pytest.mark.parametrize("key", plan_mapping())
def test_the_fields_of_a_plan_are_required_and_known(key):
    plan = plan_mapping()
    value = plan.pop(key)
    with pytest.raises(SpecError, match=rf"spec\.precision_plan\.{key} is missing"):
        spec_from({**spec_mapping(), "precision_plan": plan})
    with pytest.raises(SpecError, match=rf"unknown field '{key}s': the nearest known one is '{key}'"):
        spec_from({**spec_mapping(), "precision_plan": {**plan, key + "s": value}})


WRONG_PLANS = [  # field, value, the words that must be in the sentence
    ("flavour", "gpu", "spec.precision_plan.flavour is 'gpu': expected one of 'tensorrt', 'cpu'"),
    ("method", "guess", "spec.precision_plan.method is 'guess'"),
    ("images", 0, "spec.precision_plan.images is 0: expected a number of at least 1"),
    ("images", 1.5, "expected a whole number"),
    ("images", None, "expected a whole number"),
    ("images_digest", "abc", "expected a SHA-256 in hexadecimal"),
    ("int8", "body/0/Conv", "spec.precision_plan.int8 is 'body/0/Conv': expected a list"),
    ("fp16", [""], r"spec.precision_plan.fp16\[0\] is '': expected a name"),
    ("fp32", [3], r"spec.precision_plan.fp32\[0\] is 3: expected a text"),
    ("fp32", None, "spec.precision_plan.fp32 is None: expected a list"),
]


@pytest.mark.parametrize(("field", "value", "words"), WRONG_PLANS)
def test_wrong_plans_are_refused(field, value, words):
    with pytest.raises(SpecError, match=words):
        spec_from({**spec_mapping(), "precision_plan": {**plan_mapping(), field: value}})


@pytest.mark.parametrize("plan", [[], "int8", 3, True])
def test_what_is_no_plan_is_refused(plan):
    with pytest.raises(SpecError, match=r"spec\.precision_plan is .*: expected a mapping of fields"):
        spec_from({**spec_mapping(), "precision_plan": plan})


@pytest.mark.parametrize("field", ["int8", "fp16", "fp32"])
def test_a_layer_has_one_precision(field):
    plan = plan_mapping()
    plan[field] = [*plan[field], "body/1/Conv"]
    with pytest.raises(
        SpecError, match=r"spec\.precision_plan is .*body/1/Conv.*: expected each layer in one precision"
    ):
        spec_from({**spec_mapping(), "precision_plan": plan})


def test_replace_checks_again():
    spec = spec_from(spec_mapping())
    with pytest.raises(SpecError, match=r"spec\.rpn\.post_nms_top_n is 0"):
        dataclasses.replace(spec.rpn, post_nms_top_n=0)
    assert spec.replace(architecture="other").architecture == "other"
