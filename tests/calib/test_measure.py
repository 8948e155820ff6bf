"""From images to a calibration: ranges by the method or learned, and what FP16 cannot hold."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from calib import measure as module
from calib.artifact import spec_of_model
from calib.convert import Source, read_source
from calib.histogram import ValueStatistics
from calib.learned import LearnedRanges
from calib.measure import Measurement, RangeRule, find_beyond_fp16, measure
from calib.sensitivity import Job
from calib.thresholds import find_range
from runtime.errors import ArtifactError

MINMAX = RangeRule("minmax", 99.99, True)


@pytest.fixture
def measured(calibrated_demo, monkeypatch):
    """A function: job, rule -> Measurement from the statistics that the session has; and the names that were asked."""
    asked: list[list[str]] = []

    def stored(model: ModelProto, names, images, *, threads=None) -> Mapping[str, ValueStatistics]:
        asked.append(list(names))
        return {name: calibrated_demo.statistics[name] for name in names}

    monkeypatch.setattr(module, "collect_statistics", stored)

    def run(job: Job, rule: RangeRule = MINMAX) -> Measurement:
        return measure(calibrated_demo.source, job, calibrated_demo.images, rule, threads=1)

    run.asked = asked  # type: ignore[attr-defined]
    return run


@pytest.mark.parametrize("flavour", ["tensorrt", "cpu"])
def test_int8_has_the_range_of_each_value_by_the_method(calibrated_demo, measured, flavour):
    rule = RangeRule("percentile", 99.9, True)
    calibration = measured(Job("int8", flavour), rule).calibration
    names = calibrated_demo.source.values_to_measure(flavour)
    assert measured.asked == [names]
    assert list(calibration.ranges) == names
    levels = {True: 255, False: 127}
    for name, limits in calibration.ranges.items():
        statistics = calibrated_demo.statistics[name]
        unsigned = flavour == "cpu" and statistics.low >= 0
        assert limits == find_range(statistics, "percentile", percentile=99.9, levels=levels[unsigned])
    assert any(limits[0] < 0 for limits in calibration.ranges.values())
    assert (calibration.method, calibration.images, calibration.images_digest) == ("percentile", 3, "0" * 64)


def test_means_are_kept_for_bias_correction_alone(calibrated_demo, measured):
    means = measured(Job("int8", "tensorrt")).calibration.channel_means
    assert means is not None
    for name, mean in means.items():
        np.testing.assert_array_equal(mean, calibrated_demo.statistics[name].channel_mean)
    assert measured(Job("int8", "tensorrt"), RangeRule("minmax", 99.99, False)).calibration.channel_means is None


def test_fp16_needs_no_ranges_but_the_largest_numbers(calibrated_demo, measured):
    found = measured(Job("fp16", "tensorrt"), RangeRule("entropy", 99.99, True))
    assert found.calibration.ranges == {}
    assert found.calibration.method == "minmax"
    assert measured.asked == [calibrated_demo.source.half_values()]
    assert found.beyond == {}
    mixed = measured(Job("mixed", "tensorrt"))
    assert set(measured.asked[1]) == set(measured.asked[0]) | set(mixed.calibration.ranges)


def learned_by(source: Source, **changes) -> LearnedRanges:
    facts = {
        "layers": {name: 1.5 + number for number, name in enumerate(source.names)},
        "spec_digest": spec_of_model(source.model).parent_digest,
        "images": 64,
        "images_digest": "b" * 64,
    }
    return LearnedRanges(**{**facts, **changes})


def test_learned_ranges_replace_measured_ones_where_layers_read(calibrated_demo, measured):
    source = calibrated_demo.source
    learned = learned_by(source)
    plain = measured(Job("int8", "cpu")).calibration
    calibration = measured(Job("int8", "cpu"), RangeRule("minmax", 99.99, True, learned)).calibration
    expected = learned.ranges(source)
    assert 0 < len(expected) < len(calibration.ranges)  # results have quantisers too
    assert calibration.ranges == {**plain.ranges, **expected}
    assert (calibration.method, calibration.images, calibration.images_digest) == ("learned", 64, "b" * 64)


def test_learned_ranges_of_another_model_are_refused_before_anything_is_measured(calibrated_demo, measured):
    learned = learned_by(calibrated_demo.source, layers={"other": 1.0})
    with pytest.raises(ArtifactError, match="'other', which is no layer of this model"):
        measured(Job("int8", "tensorrt"), RangeRule("minmax", 99.99, True, learned))
    assert measured.asked == []


def reaching(largest: float) -> ValueStatistics:
    return ValueStatistics().including(np.array([[0.0, -largest]], np.float32))


def dense_graph(weight: float, bias: float):
    """A convolution and a Relu, both of the dense part."""
    constants = {"w": np.full((2, 3, 1, 1), weight, np.float32), "b": np.array([0.5, bias], np.float32)}
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["y"], name="conv"),
        helper.make_node("Relu", ["y"], ["z"], name="relu"),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xz"]
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    return helper.make_graph(nodes, "dense", values[:1], values[1:], initializers)


BEYOND = [  # weight, bias, largest |x|, |y| and |z|, what FP16 cannot hold and why; 65504 / 2 = 32752
    (1, 1, (32_752, 32_752, 32_752), {}),
    (1, 1, (32_753, 5, 5), {"conv": "its input reaches 32753 on the images, and FP16 ends at 65504"}),
    (1, 1, (5, 32_753, 5), {"conv": "its result reaches 32753 on the images", "relu": "its input reaches 32753"}),
    (1, 1, (5, 5, 40_000), {"relu": "its result reaches 40000 on the images, and FP16 ends at 65504"}),
    (-65_504, 1, (1, 1, 1), {}),
    (-65_505, 1, (1, 1, 1), {"conv": "its weight reaches 65505, and FP16 ends at 65504"}),
    (1, 1e6, (1, 1, 1), {"conv": "its weight reaches 1e+06, and FP16 ends at 65504"}),
    (float("nan"), 1, (1, 1, 1), {"conv": "its weight reaches nan, and FP16 ends at 65504"}),
    (1e6, 1, (1, 1e5, 1e5), {"conv": "its result reaches 100000", "relu": "its result reaches 100000"}),
]


@pytest.mark.parametrize(("weight", "bias", "largest", "expected"), BEYOND)
def test_what_fp16_cannot_hold_is_found_with_headroom(weight, bias, largest, expected):
    statistics = {name: reaching(value) for name, value in zip("xyz", largest, strict=True)}
    found = find_beyond_fp16(dense_graph(weight, bias), statistics)
    assert list(found) == list(expected)
    assert all(found[node].startswith(reason) for node, reason in expected.items())


def test_a_layer_beyond_fp16_is_known_to_the_source(calibrated_demo, changed_copy, measured, monkeypatch):
    source = calibrated_demo.source
    group = source.groups[3]
    large = changed_copy(lambda model: scale_weight(model, group.weight, 1e6))
    found = measure(read_source(large), Job("mixed", "tensorrt"), calibrated_demo.images, MINMAX)
    assert list(found.beyond) == list(found.source.beyond_fp16) == list(group.layers)
    assert Job("mixed", "tensorrt").assignment(found.source, [group.name])[group.name] == "fp32"


def scale_weight(model: ModelProto, name: str, factor: float) -> None:
    item = next(item for item in model.graph.initializer if item.name == name)
    item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item) * np.float32(factor), name))
