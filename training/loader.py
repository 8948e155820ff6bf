"""Batches for training, the same ones for the same seed, so that an interrupted epoch can go on where it stopped."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from functools import partial
from typing import Any

import cv2
import numpy as np
from torch.utils.data import DataLoader, Dataset

from runtime.spec import DetectorSpec
from training.data.batch import to_batch
from training.data.sample import Sample, random_flip


class AugmentedSamples(Dataset[Sample]):
    """A data set whose items are drawn with (index, draw): the draw seeds the augmentation."""

    def __init__(self, samples: Any, seed: int) -> None:
        self.samples = samples
        self.seed = seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        index, draw = key
        generator = np.random.default_rng([self.seed, draw, index])
        return random_flip(self.samples[index], generator)


def epoch_batches(count: int, batch_size: int, epoch: int, seed: int) -> list[list[tuple[int, int]]]:
    """All full batches of one epoch, as (index, draw) pairs in an order that depends on (seed, epoch) alone."""
    order = np.random.default_rng([seed, epoch]).permutation(count)
    starts = range(0, max(1, count - batch_size + 1), batch_size)
    return [[(int(index), epoch) for index in order[start : start + batch_size]] for start in starts]


def training_loader(
    samples: Any, batches: Sequence[list[tuple[int, int]]], spec: DetectorSpec, *, seed: int, workers: int
) -> DataLoader[Any]:
    """A DataLoader over `batches`; each item is what `to_batch` gives."""
    return DataLoader(
        AugmentedSamples(samples, seed),
        batch_sampler=batches,  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=partial(to_batch, spec=spec),
        worker_init_fn=_quiet_worker,
        multiprocessing_context="spawn"
        if workers
        else None,  # a fork would inherit locks of OpenCV's and torch's threads
        prefetch_factor=4 if workers else None,
    )


def _quiet_worker(_: int) -> None:
    """Workers leave Ctrl-C to the main process, and one core to each other."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
