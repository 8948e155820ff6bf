"""Batches for training, the same ones for the same seed, so that an interrupted epoch can go on where it stopped."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from runtime.errors import RunError, SourceError
from runtime.spec import DetectorSpec
from training.data.augmentation import Augmentation, augment, batch_specs
from training.data.batch import Batch, to_batch
from training.data.sample import Sample

UNREADABLE_SHARE = 0.01  # of the data set: more unreadable images in one epoch stop the run ...
UNREADABLE_LEAST = 10  # ... unless they are fewer than this
TRIES = 20  # other images, one after the other, to take an unreadable one's place


class Drawn(NamedTuple):
    """One augmented sample, or None where too many could not be read; unreadable: a sentence for each image that should
    have been in its place, but could not be read; key: its (index, draw)."""

    sample: Sample | None
    unreadable: tuple[str, ...]
    key: tuple[int, int]


class AugmentedSamples(Dataset[Drawn]):
    """A data set whose items are drawn with (index, draw): the draw seeds the augmentation.

    samples: their `augmentation`, where they have one, says what is done to them; else they are flipped both ways.
    """

    def __init__(self, samples: Any, seed: int) -> None:
        self.samples = samples
        self.seed = seed
        self.augmentation: Augmentation = getattr(samples, "augmentation", Augmentation())

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> Drawn:
        """The sample, or, where its image cannot be read, another one that (seed, draw, index) chooses."""
        index, draw = key
        others = np.random.default_rng([self.seed, draw, index, 1]).integers(len(self), size=TRIES)
        unreadable: list[str] = []
        for place in (index, *others.tolist()):
            try:
                sample = self.samples[place]
            except SourceError as error:
                unreadable.append(str(error))
                continue
            generator = np.random.default_rng([self.seed, draw, index])
            return Drawn(augment(sample, self.augmentation, generator), tuple(unreadable), key)
        return Drawn(None, tuple(unreadable), key)


class Collate:
    """Makes a Batch of what was drawn; the first picture's key decides its size where several are allowed."""

    def __init__(self, specs: Sequence[DetectorSpec], seed: int) -> None:
        self.specs = specs
        self.seed = seed

    def __call__(self, drawn: Sequence[Drawn]) -> Batch:
        spec = self.specs[0]
        samples = [one.sample for one in drawn if one.sample is not None]
        unreadable = tuple(sentence for one in drawn for sentence in one.unreadable)
        if len(samples) < len(drawn):  # TrainingBatches stops the run: an error here would reach it as a traceback
            return Batch(torch.empty(0), torch.empty(0), [], [], unreadable)
        if len(self.specs) > 1:
            index, draw = drawn[0].key
            spec = self.specs[int(np.random.default_rng([self.seed, draw, index, 2]).integers(len(self.specs)))]
        return to_batch(samples, spec, unreadable)


class TrainingBatches:
    """The batches of an epoch, or the rest of one: says which images could not be read, and stops at too many.

    unreadable: how many there were so far.
    """

    def __init__(self, loader: DataLoader[Any], limit: float) -> None:
        self.loader = loader
        self.limit = limit
        self.unreadable = 0

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        """Raises: RunError at more unreadable images than `limit`, or where no other one could be read."""
        for batch in self.loader:
            for sentence in batch.unreadable:
                self.unreadable += 1
                tqdm.write(f"warning: {sentence} Another image takes its place.", file=sys.stderr)
            if self.unreadable > self.limit or not batch.targets:
                raise RunError(
                    f"{self.unreadable} of this epoch's images could not be read, the last: {batch.unreadable[-1]} "
                    "Mend the data (`edgercnn check-data` lists all faults), then --resume."
                )
            yield batch


def epoch_batches(count: int, batch_size: int, epoch: int, seed: int) -> list[list[tuple[int, int]]]:
    """All full batches of one epoch, as (index, draw) pairs in an order that depends on (seed, epoch) alone."""
    order = np.random.default_rng([seed, epoch]).permutation(count)
    starts = range(0, max(1, count - batch_size + 1), batch_size)
    return [[(int(index), epoch) for index in order[start : start + batch_size]] for start in starts]


def training_loader(
    samples: Any, batches: Sequence[list[tuple[int, int]]], spec: DetectorSpec, *, seed: int, workers: int
) -> TrainingBatches:
    """Iterates over `batches`; each item is what `to_batch` gives.

    Raises:
        UserError: --multi-scale has a size that the spec does not allow.
    """
    augmented = AugmentedSamples(samples, seed)
    loader: DataLoader[Any] = DataLoader(
        augmented,
        batch_sampler=batches,  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=Collate(batch_specs(spec, augmented.augmentation), seed),
        worker_init_fn=_quiet_worker,
        multiprocessing_context="spawn"
        if workers
        else None,  # a fork would inherit locks of OpenCV's and torch's threads
        prefetch_factor=4 if workers else None,
        persistent_workers=workers > 0,  # they go on with the next epoch: training/trainer.py changes `batches`
        pin_memory=torch.cuda.is_available(),
    )
    return TrainingBatches(loader, max(UNREADABLE_LEAST, UNREADABLE_SHARE * len(samples)))


def _quiet_worker(_: int) -> None:
    """Workers leave Ctrl-C to the main process, and one core to each other."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
