"""The search on the demo: one layer is harmful on purpose, and nothing else must be given up for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import pytest

from calib.artifact import spec_of_model
from calib.convert import Calibration, Source, convert
from calib.cost import DEVICES, group_costs
from calib.harm import Harm, Judge, measuring_images
from calib.sensitivity import Job, measure_sensitivity, rank_groups, search_mix
from runtime.conveyor import CLASS_NAMES
from runtime.errors import UserError

GROUPS = slice(21, 25)  # of the demo's, to be quick
HARMFUL = 2  # of them
TOO_WIDE = 200.0  # times: not one step of INT8 is left for what the layer reads


@pytest.fixture(scope="module")
def judge(calibrated_demo) -> Judge:
    """On the three scenes that the demo was calibrated with; FP32 has AP 1."""
    images, annotated = measuring_images(calibrated_demo.images, 3, CLASS_NAMES)
    return Judge(calibrated_demo.source.model, images, annotated=annotated, threads=1)


@pytest.fixture(scope="module")
def source(calibrated_demo) -> Source:
    return dataclasses.replace(calibrated_demo.source, groups=calibrated_demo.source.groups[GROUPS])


@pytest.fixture(scope="module")
def calibration(calibrated_demo, source) -> Calibration:
    """The range of what one layer reads, and no other, is too wide."""
    value = source.model.graph.node[source.groups[HARMFUL].nodes[0]].input[0]
    readers = [node.name for node in source.model.graph.node if value in node.input and node.op_type == "Conv"]
    assert readers == list(source.groups[HARMFUL].layers)
    sound = calibrated_demo.calibration
    wide = tuple(TOO_WIDE * limit for limit in sound.ranges[value])
    return dataclasses.replace(sound, ranges={**sound.ranges, value: wide}, channel_means=None)


@pytest.fixture
def cache(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setenv("EDGERCNN_CACHE", str(tmp_path_factory.getbasetemp() / "cache-of-searches"))


def rank(source: Source, job: Job, calibration: Calibration, judge: Judge) -> tuple[Mapping[str, Harm], list[str]]:
    harms = measure_sensitivity(source, job, calibration, judge, say=[].append)
    costs = group_costs(source.model.graph, source.groups)
    return harms, [name for name, _ in rank_groups(harms, costs, job, DEVICES[job.flavour])]


@pytest.mark.parametrize("precision", ["int8", "mixed"])
def test_only_the_harmful_layer_is_kept(source, calibration, judge, cache, precision):
    job, budget = Job(precision, "tensorrt"), 0.03
    harmful = source.groups[HARMFUL]
    harms, order = rank(source, job, calibration, judge)
    assert max(harms, key=lambda name: harms[name].disagreement) == harmful.name
    found = search_mix(source, job, calibration, judge, lambda: order, budget, say=[].append)
    kept = [name for name, own in found.assignment.items() if own != "int8"]
    assert kept == [harmful.name]
    assert found.harm is not None
    assert found.harm.ap_drop <= budget < dict(found.tried)[0], "nothing had to be kept"
    model = convert(source, found.assignment, precision, calibration)
    assert judge.harm(model, "again") == found.harm
    spec = spec_of_model(model)
    plan = spec.precision_plan
    assert plan is not None
    assert spec.precision == precision
    assert set(plan.int8) == {layer for group in source.groups if group != harmful for layer in group.layers}
    assert set(harmful.layers) <= set(plan.fp32 if precision == "int8" else plan.fp16)


def test_a_sound_calibration_keeps_nothing(source, calibrated_demo, judge):
    def never() -> list[str]:
        raise AssertionError("asked to rank")

    sound = calibrated_demo.calibration
    found = search_mix(source, Job("int8", "tensorrt"), sound, judge, never, 0.05, say=[].append)
    assert set(found.assignment.values()) == {"int8"}


def test_mixed_cannot_hold_what_fp16_itself_does(source, calibration, judge, cache, monkeypatch):
    """A judge that counts every disagreement as a drop of AP: FP16 alone makes some, so 0 cannot be held."""
    job = Job("mixed", "tensorrt")
    measured = Judge.harm

    def strict(self: Judge, model, title: str) -> Harm:
        harm = measured(self, model, title)
        return dataclasses.replace(harm, ap_drop=harm.disagreement)

    _, order = rank(source, job, calibration, judge)
    monkeypatch.setattr(Judge, "harm", strict)
    with pytest.raises(UserError, match=r"^--max-drop is 0, but AP changes by -\d+\.\d+.* with every group in fp16: "):
        search_mix(source, job, calibration, judge, lambda: order, 0.0, say=[].append)
