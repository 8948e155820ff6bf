"""Keeps what was measured of a model's values in the cache, so that measuring can stop and go on.

One file, KEY.npz, holds how many images are done and the statistics of all values. KEY is a SHA-256 over all that these
depend on: the model, the images, the values' names, and the format of the file.
"""

from __future__ import annotations

import hashlib
import sys
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import ModelProto

from calib.histogram import BINS, ValueStatistics
from runtime.errors import OutputError
from runtime.files import atomic_output, cache_folder

FORMAT = 1  # count up when the file's fields, or what they are measured by, change


@dataclass(frozen=True)
class Measured:
    """Statistics of each value over the first `done` images."""

    done: int
    values: Mapping[str, ValueStatistics]


def nothing_measured(names: Sequence[str]) -> Measured:
    """The state before the first image."""
    return Measured(0, {name: ValueStatistics() for name in names})


def cache_file(model: ModelProto, images_digest: str, names: Sequence[str]) -> Path:
    """Where the statistics of these values of this model over these images are kept.

    Raises:
        OutputError: the cache folder cannot be made or written.
    """
    key = hashlib.sha256(model.SerializeToString(deterministic=True))
    key.update("\n".join([images_digest, f"format {FORMAT}", *sorted(names)]).encode())
    return cache_folder() / "calibration" / f"{key.hexdigest()}.npz"


def load_measured(file: Path, names: Sequence[str], total: int) -> Measured:
    """What the file holds of `names`, or the state before the first of `total` images.

    A damaged file is left out of account, and a line on stderr says so.
    """
    if not file.exists():
        return nothing_measured(names)
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return _unpacked(arrays, names, total)
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error):
        print(f"note: the cached ranges in {file} are damaged: measuring them again.", file=sys.stderr)
        return nothing_measured(names)


def save_measured(file: Path, measured: Measured) -> bool:
    """Write the file, whole or not at all; False, with a line on stderr, where the disk does not take it."""
    try:
        with atomic_output(file) as temporary:
            np.savez_compressed(temporary, allow_pickle=False, **_packed(measured))
    except (OSError, OutputError) as error:
        reason = getattr(error, "strerror", None) or error
        print(f"note: {file} cannot be written ({reason}): ranges are not kept for another run.", file=sys.stderr)
        return False
    return True


def _packed(measured: Measured) -> dict[str, np.ndarray]:
    """The fields of a file; those of the V values stand in one array each, and all their channels in a row."""
    values = list(measured.values.values())
    return {
        "done": np.array(measured.done),
        "names": np.array(list(measured.values)),
        "extremes": np.array([(one.low, one.high, one.limit) for one in values], np.float64),  # [V, 3]
        "numbers": np.array([(one.zeros, one.per_channel, len(one.channel_sum)) for one in values], np.int64),  # [V, 3]
        "counts": np.stack([one.counts for one in values]),  # [V, BINS]
        "channel_sums": np.concatenate([one.channel_sum for one in values]),
    }


def _unpacked(arrays: Mapping[str, np.ndarray], names: Sequence[str], total: int) -> Measured:
    """The reverse of `_packed`; KeyError or ValueError where the fields do not fit together."""
    done, stored = int(arrays["done"]), [str(name) for name in arrays["names"]]
    extremes, numbers, counts, sums = (arrays[key] for key in ("extremes", "numbers", "counts", "channel_sums"))
    fitting = (
        0 <= done <= total
        and sorted(stored) == sorted(names)
        and (extremes.shape, numbers.shape) == ((len(names), 3), (len(names), 3))
        and (counts.shape, counts.dtype, sums.dtype) == ((len(names), BINS), np.int64, np.float64)
        and sums.shape == (int(numbers[:, 2].sum()),)
        and (numbers >= 0).all()
    )
    if not fitting:
        raise ValueError("fields that do not fit together")
    channels = np.split(sums, np.cumsum(numbers[:, 2])[:-1])
    values = {
        name: ValueStatistics(
            low=float(extremes[index, 0]),
            high=float(extremes[index, 1]),
            limit=float(extremes[index, 2]),
            counts=counts[index],
            zeros=int(numbers[index, 0]),
            channel_sum=channels[index],
            per_channel=int(numbers[index, 1]),
        )
        for index, name in enumerate(stored)
    }
    return Measured(done, {name: values[name] for name in names})
