"""Clipping thresholds: held against loops over the histogram, and against what quantising samples really costs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from calib import thresholds
from calib.histogram import BINS, HALF, ValueStatistics
from calib.thresholds import (
    EPSILON,
    METHODS,
    entropy_threshold,
    find_range,
    fold,
    kl_divergences,
    mse_threshold,
    percentile_threshold,
)
from runtime.errors import UserError

COUNT = 200_000
HISTOGRAMS = st.lists(st.integers(0, 1000), min_size=1, max_size=40).filter(any)


def statistics_of(values) -> ValueStatistics:
    return ValueStatistics().including(np.asarray(values, np.float32))


def samples(name: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    drawn = {
        "gaussian": lambda: rng.normal(size=COUNT),
        "laplace": lambda: rng.laplace(size=COUNT),
        "one-sided": lambda: np.maximum(rng.normal(size=COUNT), 0),
        "uniform": lambda: rng.uniform(-1, 1, COUNT),
        "outlier": lambda: np.append(rng.normal(size=COUNT), -300.0),
    }
    return drawn[name]().astype(np.float32)


def full(histogram) -> np.ndarray:
    """A short histogram of |x| with empty bins up to HALF."""
    return np.pad(np.array(histogram, np.int64), (0, HALF - len(histogram)))


# --- percentile


@given(HISTOGRAMS, st.floats(0.01, 100))
def test_percentile_is_that_of_a_loop(histogram, percentile):
    total = sum(histogram)
    edges = range(1, len(histogram) + 1)
    expected = next(edge for edge in edges if sum(histogram[:edge]) >= total * (percentile / 100))
    assert percentile_threshold(full(histogram), percentile) == expected


def test_percentile_keeps_its_share():
    values = samples("laplace")
    for percentile in (50.0, 99.0, 99.9, 99.99):
        low, high = find_range(statistics_of(values), "percentile", percentile=percentile)
        inside = np.mean(np.abs(values) <= high)
        assert low == -high
        assert percentile / 100 <= inside < percentile / 100 + 0.01
    assert find_range(statistics_of(values), "percentile", percentile=100) == (values.min(), values.max())


# --- mean squared error


def squared_error_by_hand(histogram, threshold: int, levels: int) -> float:
    """Sum over many points of every bin of the squared error that rounding and clipping make."""
    step = threshold / levels
    error = 0.0
    for index, count in enumerate(histogram):
        for x in np.arange(index + 0.0005, index + 1, 0.001):
            quantised = min(math.floor(x / step + 0.5), levels) * step
            error += count * (x - quantised) ** 2 / 1000
    return error


@pytest.mark.parametrize("levels", [7, 127])
def test_expected_errors_are_those_of_a_loop(levels):
    histogram = [90, 40, 30, 0, 12, 5, 0, 2, 1]
    errors = [squared_error_by_hand(histogram, threshold, levels) for threshold in range(1, len(histogram) + 1)]
    found = thresholds._squared_errors(levels)[: len(histogram), : len(histogram)] @ histogram
    np.testing.assert_allclose(found, errors, rtol=2e-3)
    assert mse_threshold(full(histogram), levels) == np.argmin(errors) + 1


def real_error(values: np.ndarray, threshold: float, levels: int) -> float:
    step = threshold / levels
    return float(np.mean((values - np.clip(np.rint(values / step), -levels, levels) * step) ** 2))


@pytest.mark.parametrize("levels", [15, 127])
@pytest.mark.parametrize("name", ["gaussian", "laplace", "one-sided", "outlier"])
def test_no_threshold_costs_clearly_less_than_the_one_found(name, levels):
    values = samples(name).astype(np.float64)
    low, high = find_range(statistics_of(values), "mse", levels=levels)
    found = real_error(values, max(-low, high), levels)
    best = min(real_error(values, threshold, levels) for threshold in np.linspace(0.02, 1, 50) * np.abs(values).max())
    assert found < 1.02 * best


# --- entropy


def divergence_by_hand(histogram, threshold: int, groups: int) -> float:
    """The definition, bin by bin."""
    reference = [float(count) for count in histogram[:threshold]]
    reference[-1] += sum(histogram[threshold:])
    group_of = [index * groups // threshold for index in range(threshold)]
    quantised = []
    for index in range(threshold):
        members = [other for other in range(threshold) if group_of[other] == group_of[index]]
        elements = sum(histogram[other] for other in members)
        filled = sum(reference[other] > 0 for other in members)
        quantised.append(elements / filled if reference[index] > 0 else 0.0)
    inside, total = sum(histogram[:threshold]), sum(histogram)
    if inside == 0:
        return math.inf
    divergence = 0.0
    for p, q in zip(reference, quantised, strict=True):
        if p > 0:
            divergence += p / total * math.log((p / total) / (max(q, EPSILON) / inside))
    return divergence


@given(HISTOGRAMS, st.integers(1, 5), st.integers(2, 8))
def test_divergences_are_those_of_a_loop(histogram, last, groups):
    histogram = [*histogram, last]
    assume(len(histogram) >= groups)
    expected = [divergence_by_hand(histogram, threshold, groups) for threshold in range(groups, len(histogram) + 1)]
    np.testing.assert_allclose(kl_divergences(np.array(histogram), groups), expected, rtol=1e-9, atol=1e-12)


@given(HISTOGRAMS, st.integers(1, 7))
def test_entropy_takes_the_smallest_divergence(histogram, levels):
    found = entropy_threshold(full(histogram), levels)
    used = max(index for index, count in enumerate(histogram) if count) + 1
    if used <= levels + 1:
        assert found == used
        return
    errors = {t: divergence_by_hand(histogram[:used], t, levels + 1) for t in range(levels + 1, used + 1)}
    assert errors[found] == pytest.approx(min(errors.values()), rel=1e-9, abs=1e-12)


# --- ranges


def test_folding_adds_both_sides():
    counts = np.zeros(BINS, np.int64)
    counts[[0, HALF - 1, HALF, HALF + 7, HALF - 8, BINS - 1]] = [1, 2, 4, 8, 16, 32]
    folded = fold(counts)
    assert {index: int(folded[index]) for index in np.flatnonzero(folded)} == {0: 6, 7: 24, HALF - 1: 33}


@pytest.mark.parametrize("name", ["gaussian", "laplace", "one-sided", "uniform", "outlier"])
def test_minmax_is_exact(name):
    values = samples(name)
    assert find_range(statistics_of(values), "minmax") == (min(values.min(), 0), max(values.max(), 0))


@pytest.mark.parametrize(("method", "least"), [("entropy", -33), ("percentile", -4.1), ("mse", -160)])
def test_a_single_outlier_is_clipped(method, least):
    """300 deviations of the others, one element of 200,000: it is worth something to "mse", and to no other method."""
    low, high = find_range(statistics_of(samples("outlier")), method)
    assert least < low < -3
    assert high == min(samples("outlier").max(), -low)


@pytest.mark.parametrize("method", METHODS)
def test_a_uniform_distribution_is_not_clipped(method):
    low, high = find_range(statistics_of(samples("uniform")), method)
    assert -1 <= low < -0.98
    assert 0.98 < high <= 1


@pytest.mark.parametrize(("name", "expected"), [("gaussian", 3.92), ("laplace", 9.89)])
def test_mse_finds_the_known_optimum_of_eight_bits(name, expected):
    """Banner et al., "Post training 4-bit quantization", 2019: 3.92 deviations and 9.89 scales."""
    low, high = find_range(statistics_of(samples(name)), "mse")
    assert max(-low, high) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_never_negative_has_a_range_from_zero(method):
    low, high = find_range(statistics_of(samples("one-sided")), method)
    assert low == 0
    assert 3.3 < high <= samples("one-sided").max()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sign", [1, -1])
def test_zero_is_inside_even_where_no_value_is_near(method, sign):
    values = sign * np.random.default_rng(0).uniform(2, 5, 10_000)
    low, high = find_range(statistics_of(values), method)
    assert (low, high)[sign < 0] == 0
    assert 0 < (high, -low)[sign < 0] <= 5


@pytest.mark.parametrize("method", ["mse", "entropy"])
def test_zeros_change_nothing_but_the_percentile(method):
    """ReLU's zeros are exact for every threshold."""
    values = np.abs(samples("gaussian"))
    with_zeros = np.append(values, np.zeros(4 * COUNT, np.float32))
    assert find_range(statistics_of(with_zeros), method) == find_range(statistics_of(values), method)


def test_percentile_counts_zeros():
    values = np.append(np.abs(samples("gaussian")), np.zeros(4 * COUNT, np.float32))
    _, high = find_range(statistics_of(values), "percentile", percentile=90)
    assert high == pytest.approx(0.6745, abs=0.02)  # half of the others


@pytest.mark.parametrize("method", METHODS)
def test_only_zeros_and_no_element_have_no_range(method):
    assert find_range(statistics_of(np.zeros(5)), method) == (0, 0)
    assert find_range(ValueStatistics(), method) == (0, 0)


@pytest.mark.parametrize("method", METHODS)
def test_an_element_that_no_sample_met_still_gives_a_range(method):
    zeros = np.zeros(BINS, np.int64)
    zeros[HALF] = 1000
    unmet = ValueStatistics(-0.25, 3.0, 4.0, zeros, 1000, np.zeros(1), 2000)
    assert find_range(unmet, method) == (-0.25, 3.0)


@pytest.mark.parametrize("method", METHODS)
def test_one_element_is_its_own_range(method):
    low, high = find_range(statistics_of([2.5]), method)
    assert low == 0
    assert 0 < high <= 2.5


FLOATS = st.floats(-1e4, 1e4, width=32)
VALUES = hnp.arrays(np.float32, st.integers(1, 60), elements=FLOATS).filter(lambda values: np.abs(values).max() > 1e-6)


@given(VALUES, st.sampled_from(METHODS))
def test_a_range_lies_within_the_extremes_and_is_not_empty(values, method):
    low, high = find_range(statistics_of(values), method)
    assert min(values.min(), 0) <= low <= 0 <= high <= max(values.max(), 0)
    assert low < high


@given(VALUES, st.sampled_from(METHODS), st.integers(-30, 30))
def test_scaling_by_a_power_of_two_scales_the_range(values, method, exponent):
    low, high = find_range(statistics_of(values), method)
    scaled = find_range(statistics_of(values * np.float32(2.0**exponent)), method)
    assume(np.all(values * np.float32(2.0**exponent) / np.float32(2.0**exponent) == values))
    assert scaled == (low * 2.0**exponent, high * 2.0**exponent)


@given(VALUES, st.sampled_from(METHODS))
def test_mirrored_values_have_nearly_the_mirrored_range(values, method):
    """Nearly: an element on the edge of two bins changes sides."""
    statistics, mirrored = statistics_of(values), statistics_of(-values)
    assume(np.array_equal(fold(statistics.counts), fold(mirrored.counts)))
    low, high = find_range(statistics, method)
    assert find_range(mirrored, method) == (-high, -low)


@given(VALUES, st.floats(0.01, 100), st.floats(0.01, 100))
def test_a_larger_percentile_gives_no_smaller_range(values, one, other):
    statistics = statistics_of(values)
    low, high = find_range(statistics, "percentile", percentile=min(one, other))
    wider_low, wider_high = find_range(statistics, "percentile", percentile=max(one, other))
    assert wider_low <= low <= high <= wider_high


def test_more_levels_clip_less():
    statistics = statistics_of(samples("laplace"))
    assert find_range(statistics, "mse", levels=15)[1] < find_range(statistics, "mse")[1]
    assert find_range(statistics, "mse")[1] < find_range(statistics, "mse", levels=255)[1]


@pytest.mark.parametrize("percentile", [0.0, -1.0, 100.1, float("nan")])
def test_impossible_percentiles_are_refused(percentile):
    with pytest.raises(UserError, match="give a share above 0"):
        find_range(statistics_of([1.0]), "percentile", percentile=percentile)


def test_unknown_methods_are_refused():
    with pytest.raises(UserError, match="choose from entropy, percentile, mse, minmax"):
        find_range(statistics_of([1.0]), "median")
