"""From the distribution of a value to the range that INT8 shall cover: four methods.

All of them choose a threshold T > 0 at which |x| is clipped, among the upper edges of the bins of the folded histogram:
folded[k] elements have |x| from k * width to (k + 1) * width. Exact zeros stay exact for every T, so that only
"percentile" counts them.

Shapes: H = BINS / 2 bins of |x|, C thresholds to choose from; L levels, the steps between 0 and T.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from calib.histogram import HALF, ValueStatistics
from runtime.errors import UserError

METHODS = ("entropy", "percentile", "mse", "minmax")
INT8_LEVELS = 127
EPSILON = 1e-4


def find_range(
    statistics: ValueStatistics, method: str, *, percentile: float = 99.99, levels: int = INT8_LEVELS
) -> tuple[float, float]:
    """(low, high) that the quantised value shall cover: the exact extremes, clipped at -T and T.

    The range always contains 0, which must be representable. It is (0, 0) if and only if the value was 0 throughout
    (or had no element): such a value has no scale, and the caller decides what becomes of it.

    Args:
        method: "minmax": T is the largest |x|, nothing is clipped. "percentile": the smallest edge with that share of
            the elements at most T. "mse": see `mse_threshold`. "entropy": see `entropy_threshold`.
        percentile: above 0, at most 100.
        levels: steps between 0 and T: 127 of INT8, 255 of UINT8 for values that are never negative.

    Raises:
        UserError: another method, or a percentile out of range.
    """
    if method not in METHODS:
        raise UserError(f"unknown calibration method {method!r}: choose from {', '.join(METHODS)}.")
    if not 0 < percentile <= 100:
        raise UserError(f"percentile {percentile}: give a share above 0 and up to 100, like 99.99.")
    if statistics.largest == 0:
        return 0.0, 0.0
    threshold = _threshold(statistics, method, percentile, levels)
    return min(max(statistics.low, -threshold), 0.0), max(min(statistics.high, threshold), 0.0)


def _threshold(statistics: ValueStatistics, method: str, percentile: float, levels: int) -> float:
    """The method's T, at most one bin beyond the largest |x|."""
    folded = fold(statistics.counts)
    nonzero = folded.copy()
    nonzero[0] -= statistics.zeros
    if method == "minmax" or not nonzero.any():  # a sample may hold nothing but zeros
        return statistics.largest
    if method == "percentile":
        bins = percentile_threshold(folded, percentile)
    elif method == "mse":
        bins = mse_threshold(nonzero, levels)
    else:
        bins = entropy_threshold(nonzero, levels)
    return bins * statistics.limit / HALF


def fold(counts: np.ndarray) -> np.ndarray:
    """The histogram of x over [-limit, limit], [2H], as one of |x|, [H]."""
    return counts[HALF:] + counts[HALF - 1 :: -1]


def percentile_threshold(folded: np.ndarray, percentile: float) -> int:
    """T in bins: the first edge with at least `percentile` % of the elements below it."""
    cumulative = np.cumsum(folded)
    return int(np.searchsorted(cumulative, cumulative[-1] * (percentile / 100))) + 1


def mse_threshold(folded: np.ndarray, levels: int) -> int:
    """T in bins with the smallest expected squared error of rounding to multiples of T / L and clipping at T.

    The elements are taken as evenly distributed within their bin, which makes the error an integral in closed form:
    thresholds of fewer than L bins are judged as fairly as large ones.
    """
    used = used_bins(folded)
    errors = _squared_errors(levels)[:used, :used] @ folded[:used].astype(np.float64)  # [C]
    return int(np.argmin(errors)) + 1


def entropy_threshold(folded: np.ndarray, levels: int) -> int:
    """T in bins with the smallest Kullback-Leibler divergence of what INT8 makes of the distribution from itself.

    For every T of at least L + 1 bins: the reference P is the histogram up to T with all that lies beyond in its last
    bin. The quantised Q shares the histogram up to T, without what lies beyond, out among L + 1 groups of bins, and
    each group's elements evenly among those of its bins where P has some. Both are scaled to a sum of 1. Where P has
    outliers and Q nothing, Q gets EPSILON elements.

    Ref: S. Migacz, "8-bit inference with TensorRT", GTC 2017. EPSILON is that of ONNX Runtime's
    calibrator; NVIDIA's pytorch-quantization drops the bin of the zeros, as we drop the zeros.
    """
    used = used_bins(folded)
    if used <= levels + 1:
        return used
    return levels + 1 + int(np.argmin(kl_divergences(folded[:used], levels + 1)))


def kl_divergences(folded: np.ndarray, groups: int) -> np.ndarray:
    """KL(P || Q) in nats for T = groups .. len(folded) bins, the last of which is not empty; see `entropy_threshold`.

    With f the histogram, N and M the sums of all of it and of its bins up to T, o = N - M, l the last bin, and S and n
    the elements and the filled bins of a group: P is f / N, but (f_l + o) / N in the last bin, and Q is S / n / M. So
    N KL = sum f log f + [(f_l + o) log (f_l + o) - f_l log f_l] - sum S log(S / n) - o log(S_l / n_l) + N log(M / N).
    """
    counts = folded.astype(np.float64)
    candidates = np.arange(groups, len(counts) + 1)  # [C]
    edges = _group_edges(groups, len(counts))  # [C, groups + 1]
    elements = np.diff(_sums_before(counts)[edges], axis=1)
    filled = np.diff(_sums_before(counts > 0)[edges], axis=1)
    inside, total, last = _sums_before(counts)[candidates], counts.sum(), counts[candidates - 1]
    outliers = total - inside
    filled[:, -1] += last == 0  # by outliers: the last bin of all is not empty
    shares = elements / np.maximum(filled, 1)
    result = _sums_before(_x_log_x(counts))[candidates] + _x_log_x(last + outliers) - _x_log_x(last)
    result -= (elements * _log(shares)).sum(axis=1)
    result -= outliers * np.log(np.maximum(shares[:, -1], EPSILON))
    return np.where(inside > 0, result / total + _log(inside / total), np.inf)


def used_bins(folded: np.ndarray) -> int:
    """How many bins there are up to the last that is not empty."""
    return int(np.flatnonzero(folded)[-1]) + 1


@lru_cache(maxsize=2)
def _squared_errors(levels: int) -> np.ndarray:
    """Mean squared error, in bins^2, of the elements of each bin for each T = 1 .. H bins: [C, H], for every value.

    The integral of (x - s round(x / s))^2 from 0 to x is round(x / s) s^3 / 12 + (x - s round(x / s))^3 / 3.
    """
    edges = np.arange(HALF + 1, dtype=np.float64)
    thresholds = edges[1:, None]  # [C, 1]
    steps = thresholds / levels
    inside = np.minimum(edges, thresholds)  # [C, H + 1]
    rounded = np.rint(inside / steps)
    integral = rounded * steps**3 / 12 + (inside - rounded * steps) ** 3 / 3
    integral += np.maximum(edges - thresholds, 0) ** 3 / 3
    return np.diff(integral, axis=1)


@lru_cache(maxsize=8)
def _group_edges(groups: int, bins: int) -> np.ndarray:
    """First bin of every group, and the end of the last, for T = groups .. bins: int64 [C, groups + 1]."""
    candidates = np.arange(groups, bins + 1)[:, None]
    return -(-np.arange(groups + 1) * candidates // groups)  # bin k belongs to group k * groups // T


def _sums_before(values: np.ndarray) -> np.ndarray:
    """Sum of the items before each index, one longer than `values`."""
    return np.concatenate([[0.0], np.cumsum(values)])


def _log(values: np.ndarray) -> np.ndarray:
    """log, with 0 for 0: the factor beside it is 0 there."""
    return np.log(np.where(values > 0, values, 1.0))


def _x_log_x(values: np.ndarray) -> np.ndarray:
    return values * _log(values)
