"""What the tests of the training commands begin with: a few pictures, and checkpoints of random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from runtime.conveyor.dataset import write_dataset
from runtime.spec import DetectorSpec
from training.checkpoint import save_checkpoint
from training.models.detectors import build_detector


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """annotations.json of four conveyor pictures of 96x128 px; not to be changed."""
    return write_dataset(tmp_path_factory.mktemp("data") / "conveyor", 4, 11, size_hw=(96, 128), workers=1)


@pytest.fixture(scope="session")
def write_weights(tmp_path_factory) -> Callable[..., Path]:
    """A function: (spec, file name, options of save_checkpoint) -> a checkpoint of random weights."""

    def write(spec: DetectorSpec, name: str, **options: bool) -> Path:
        torch.manual_seed(0)
        path = tmp_path_factory.mktemp("weights") / name
        save_checkpoint(path, build_detector(spec), spec, **options)
        return path

    return write
