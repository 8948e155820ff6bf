"""What CI cannot run: PyTorch on an NVIDIA GPU against itself on the CPU. `make test-gpu`."""

from __future__ import annotations

import pytest
import torch

from runtime.backends.nvidia import gpu_count
from runtime.detector import Detector
from tests.training.test_trainer import CountingSamples, make_trainer
from training.backend import TorchBackend
from training.checkpoint import load_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(gpu_count() == 0, reason="no NVIDIA GPU with a driver on this machine"),
]


def test_torch_on_the_gpu_detects_what_it_detects_on_the_cpu(demo, frames, check_same):
    model, spec = load_checkpoint(demo)
    reference = Detector(TorchBackend(model, spec))(frames)
    candidate = Detector(TorchBackend(model.to("cuda"), spec))(frames)
    check_same("torch, cuda", reference, candidate, spec.detection)


def test_mixed_precision_training_learns(tmp_path):
    trainer = make_trainer(
        tmp_path, CountingSamples(4), epochs=12, batch_size=4, schedule="multistep", device=torch.device("cuda")
    )
    assert trainer.take_step.scaler.is_enabled()
    trainer.fit()
    losses = [row["loss"] for row in trainer.history]
    assert losses[-1] < 0.7 * losses[0]
