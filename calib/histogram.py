"""The distribution of one value of a detector, image after image: extremes, histogram and means of channels.

Shapes: a value is float32 [B, C, ...] (features, logits) or [R, C] (of R boxes).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

BINS = 4096
HALF = BINS // 2
SAMPLE = 1 << 20  # elements of one value of one image that feed the histogram
SMALLEST_LIMIT = 2.0**-100  # below, BINS / limit leaves float32


@dataclass(frozen=True)
class ValueStatistics:
    """The distribution of one value over the images seen so far.

    low, high: exact extremes; inf, -inf before the first element. limit: the histogram spans [-limit, limit), a power
    of two, 0 while all elements were 0. counts: int64 [BINS], elements per bin; bin k holds
    [-limit + k * width, -limit + (k + 1) * width) with width = 2 * limit / BINS. zeros: how many of them, all in bin
    HALF, are exactly 0. channel_sum: float64 [C], exact sums; per_channel: elements behind each sum.

    Of values with more than SAMPLE elements, every n-th is counted, as n.
    """

    low: float = math.inf
    high: float = -math.inf
    limit: float = 0.0
    counts: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))
    zeros: int = 0
    channel_sum: np.ndarray = field(default_factory=lambda: np.zeros(0))
    per_channel: int = 0

    @property
    def elements(self) -> int:
        """How many were seen, exactly."""
        return self.per_channel * len(self.channel_sum)

    @property
    def channel_mean(self) -> np.ndarray:
        """Mean over batch and all axes but axis 1, float64 [C]; one channel for values with fewer than two axes."""
        return self.channel_sum / max(self.per_channel, 1)

    @property
    def largest(self) -> float:
        """Of |x|, exact; 0 before the first element."""
        return max(abs(self.low), abs(self.high)) if self.elements else 0.0

    def including(self, values: np.ndarray) -> ValueStatistics:
        """These statistics and those of float32 `values` together.

        Raises:
            FloatingPointError: NaN or infinity among the values.
        """
        if values.size == 0:
            return self
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise FloatingPointError("NaN" if math.isnan(low + high) else "infinity")
        limit = max(self.limit, histogram_limit(max(abs(low), abs(high))))
        step = sampling_step(values.shape)
        sample = np.ascontiguousarray(values).reshape(-1)[::step]
        sums = channel_sums(values)
        return ValueStatistics(
            low=min(self.low, low),
            high=max(self.high, high),
            limit=limit,
            counts=widened(self.counts, self.limit, limit) + step * histogram(sample, limit),
            zeros=self.zeros + step * int(sample.size - np.count_nonzero(sample)),
            channel_sum=self.channel_sum + sums if self.elements else sums,
            per_channel=self.per_channel + values.size // len(sums),
        )


def histogram_limit(largest: float) -> float:
    """The smallest power of two above `largest`; 0 for 0."""
    if largest == 0:
        return 0.0
    _, exponent = math.frexp(largest)  # largest = mantissa * 2 ** exponent, mantissa from 0.5 to below 1
    return max(math.ldexp(1.0, exponent), SMALLEST_LIMIT)


def histogram(sample: np.ndarray, limit: float) -> np.ndarray:
    """Elements per bin of a flat float32 sample of [-limit, limit), int64 [BINS]; exact, as limit is 2 ** n."""
    if limit == 0:
        counts = np.zeros(BINS, np.int64)
        counts[HALF] = sample.size
        return counts
    bins = np.floor(sample * np.float32(HALF / limit)).astype(np.intp)
    bins += HALF
    return np.bincount(bins, minlength=BINS)


def widened(counts: np.ndarray, limit: float, new_limit: float) -> np.ndarray:
    """The histogram `counts` over [-new_limit, new_limit]: bins are merged in pairs for every doubling."""
    if limit == 0:  # nothing but zeros, and their bin is HALF for every limit
        return counts
    while limit < new_limit:
        merged = np.zeros_like(counts)
        merged[BINS // 4 : BINS // 4 + HALF] = counts.reshape(-1, 2).sum(axis=1)
        counts, limit = merged, limit * 2
    return counts


def channel_sums(values: np.ndarray) -> np.ndarray:
    """Sums over all axes but axis 1 in double precision, float64 [C]; [1] for values with fewer than two axes."""
    if values.ndim < 2:
        return values.sum(dtype=np.float64).reshape(1)
    rows = values.reshape(*values.shape[:2], -1)  # [B, C, rest]
    return rows.sum(axis=2, dtype=np.float64).sum(axis=0)


def sampling_step(shape: Sequence[int]) -> int:
    """1 for up to SAMPLE elements, else about size / SAMPLE; prime to the last axis, so that no column is left out."""
    step = -(-math.prod(shape) // SAMPLE)
    while math.gcd(step, shape[-1] if shape else 1) != 1:
        step += 1
    return step
