"""The distribution of a value, held against loops over its elements."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from calib import histogram as module
from calib.histogram import BINS, HALF, ValueStatistics, channel_sums, histogram_limit, sampling_step

FLOATS = st.floats(-1e4, 1e4, width=32) | st.floats(-(2.0**-10), 2.0**-10, width=32) | st.just(0.0) | st.just(-0.0)
BATCHES = st.lists(hnp.arrays(np.float32, st.tuples(st.integers(0, 3), st.just(2), st.integers(1, 4)), elements=FLOATS))


def after(batches) -> ValueStatistics:
    statistics = ValueStatistics()
    for batch in batches:
        statistics = statistics.including(batch)
    return statistics


@given(BATCHES)
def test_statistics_are_those_of_a_loop(batches):
    """However the range grew on the way, every element is in the bin where the last range puts it."""
    statistics = after(batches)
    elements = [float(x) for batch in batches for x in batch.reshape(-1)]
    assert statistics.elements == len(elements)
    assert statistics.low == min(elements, default=math.inf)
    assert statistics.high == max(elements, default=-math.inf)
    assert statistics.largest == max((abs(x) for x in elements), default=0)
    assert statistics.zeros == elements.count(0)
    width = 2 * statistics.limit / BINS
    expected = [0] * BINS
    for x in elements:
        expected[HALF + (math.floor(x / width) if width else 0)] += 1
    assert statistics.counts.tolist() == expected
    assert statistics.counts.dtype == np.int64


@given(BATCHES)
def test_means_are_those_of_each_channel(batches):
    statistics = after(batches)
    for channel, mean in enumerate(statistics.channel_mean):
        elements = [float(x) for batch in batches for x in batch[:, channel].reshape(-1)]
        assert mean == pytest.approx(math.fsum(elements) / len(elements), abs=1e-8)


@given(BATCHES, st.integers(-20, 20))
def test_scaling_by_a_power_of_two_changes_the_scale_only(batches, exponent):
    factor = np.float32(2.0**exponent)
    statistics, scaled = after(batches), after([batch * factor for batch in batches])
    if statistics.largest < 2.0**-50:
        return  # near the smallest limit
    assert scaled.limit == statistics.limit * factor
    np.testing.assert_array_equal(scaled.counts, statistics.counts)


def test_statistics_do_not_change_what_they_came_from():
    first = ValueStatistics().including(np.ones((1, 3, 2), np.float32))
    counts = first.counts.copy()
    second = first.including(np.full((1, 3, 2), 50, np.float32))
    assert (first.high, first.elements, second.high, second.elements) == (1, 6, 50, 12)
    np.testing.assert_array_equal(first.counts, counts)
    assert first.channel_mean.tolist() == [1, 1, 1]


@pytest.mark.parametrize("shape", [(), (5,), (5, 3), (2, 3, 4), (2, 3, 4, 5)])
def test_channels_lie_on_axis_one(shape):
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    axes = tuple(axis for axis in range(len(shape)) if axis != 1)
    expected = values.astype(np.float64).sum(axis=axes) if len(shape) > 1 else [values.astype(np.float64).sum()]
    np.testing.assert_allclose(channel_sums(values), expected, rtol=1e-12)
    statistics = ValueStatistics().including(values)
    assert statistics.elements == values.size
    np.testing.assert_allclose(statistics.channel_mean, np.array(expected) / (values.size // len(expected)), rtol=1e-12)


def test_sums_are_in_double_precision():
    """In float32, 2 ** 24 + 1 would be 2 ** 24."""
    statistics = ValueStatistics().including(np.array([[2.0**24], [1.0], [1.0], [1.0]], np.float32))
    assert statistics.channel_mean.tolist() == [(2**24 + 3) / 4]


@pytest.mark.parametrize(("value", "name"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")])
def test_what_is_no_number_is_refused(value, name):
    values = np.ones((1, 2, 3), np.float32)
    values[0, 1, 2] = value
    with pytest.raises(FloatingPointError, match=name):
        ValueStatistics().including(values)


@pytest.mark.parametrize("largest", [1e-30, 1e-3, 0.99, 1.0, 1.5, 2.0, 3e38])
def test_the_limit_is_the_next_power_of_two(largest):
    limit = histogram_limit(largest)
    assert limit / 2 <= largest < limit
    assert math.frexp(limit)[0] == 0.5


def test_extremes_of_float32_are_counted():
    tiny, huge = np.finfo(np.float32).smallest_subnormal, np.finfo(np.float32).max
    statistics = after([np.array([tiny, -tiny], np.float32), np.array([huge, -huge], np.float32)])
    assert statistics.counts.sum() == 4
    assert statistics.counts[[0, HALF - 1, HALF, BINS - 1]].tolist() == [1, 1, 1, 1]
    assert statistics.zeros == 0
    only_tiny = after([np.array([tiny, -tiny], np.float32)])
    assert only_tiny.counts[[HALF - 1, HALF]].tolist() == [1, 1]


def test_large_values_feed_the_histogram_with_a_sample(monkeypatch):
    """Extremes and means stay exact; the shares of the histogram are nearly those of all elements."""
    monkeypatch.setattr(module, "SAMPLE", 1 << 12)
    values = np.random.default_rng(0).normal(size=(1, 8, 64, 64)).astype(np.float32)
    values[0, :, 0] = 0
    values[0, 0, 0, 1] = 40
    statistics = ValueStatistics().including(values)
    assert (statistics.low, statistics.high) == (values.min(), 40)
    np.testing.assert_allclose(statistics.channel_mean, values.mean(axis=(0, 2, 3), dtype=np.float64), rtol=1e-12)
    assert statistics.counts.sum() == pytest.approx(values.size, rel=1e-3)
    assert statistics.zeros == pytest.approx(8 * 64, rel=0.1)
    positive = statistics.counts[HALF:].sum() - statistics.zeros
    assert positive / values.size == pytest.approx(0.5 * 63 / 64, abs=0.02)


@pytest.mark.parametrize("shape", [(1, 64, 128, 192), (1, 3, 1000, 7001), (3, 1 << 20), (1, 1, 4, 1 << 20)])
def test_the_sample_visits_every_column(shape):
    step = sampling_step(shape)
    size = math.prod(shape)
    assert module.SAMPLE / 5 < size / step <= module.SAMPLE
    columns = np.unique(np.arange(0, size, step) % shape[-1])
    assert len(columns) == min(shape[-1], -(-size // step))


def test_up_to_the_limit_every_element_is_counted():
    assert sampling_step((1, 1, 1024, 1024)) == 1
    assert sampling_step((0, 4)) == 1
    assert sampling_step(()) == 1
