"""What CI cannot run: PyTorch on an NVIDIA GPU against itself on the CPU. `make test-gpu`."""

from __future__ import annotations

import pytest
import torch

from runtime.backends.nvidia import gpu_count
from runtime.detector import Detector
from tests.training.test_folded_norms import outputs_and_gradients, with_statistics
from tests.training.test_trainer import CountingSamples, make_trainer
from training.backend import TorchBackend
from training.checkpoint import load_checkpoint
from training.models.backbones import build_backbone
from training.models.folded_norms import FoldedNorms
from training.models.specs import spec_for
from training.schedule import TrainOptions, build_optimizer

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


def test_skipped_steps_leave_weights_and_momentum_alone():
    layer = torch.nn.Linear(3, 2).cuda()
    optimizer = build_optimizer(layer, TrainOptions(optimizer="sgd", learning_rate=0.1, weight_decay=0.0))
    scaler = torch.amp.GradScaler("cuda")
    before = layer.weight.detach().clone()
    for scale in (1e38, 1.0, 1e38):  # the first and the last overflow
        scaler.scale(layer(torch.full((1, 3), scale, device="cuda")).square().sum()).backward()
        gradient = layer.weight.grad.clone() / scaler.get_scale()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if scale == 1.0:
            before -= 0.1 * gradient
        torch.testing.assert_close(layer.weight.detach(), before)


def test_folded_norms_of_mixed_precision_give_the_gradients_of_float32():
    network = with_statistics(build_backbone(spec_for("fasterrcnn_resnet50_fpn").backbone)).cuda()
    network = network.to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 256, 320, device="cuda")
    expected = outputs_and_gradients(network, images)
    with torch.autocast("cuda", dtype=torch.float16), FoldedNorms(network).active():
        found = outputs_and_gradients(network, images)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() < 0.05 * other.norm()
