"""What CI cannot run: PyTorch on an NVIDIA GPU against itself on the CPU. `make test-gpu`."""

from __future__ import annotations

import pytest
import torch

from plugins.pyramid_roi_align.torch_op import pool_level
from runtime.backends.nvidia import gpu_count
from runtime.detector import Detector
from tests.plugins.test_repeatable_roi_align import gradients, rois_everywhere
from tests.training.test_folded_norms import outputs_and_gradients, with_statistics
from tests.training.test_trainer import CountingSamples, make_trainer
from training.backend import TorchBackend
from training.checkpoint import load_checkpoint
from training.models.backbones import build_backbone
from training.models.folded_norms import FoldedNorms
from training.models.specs import spec_for
from training.schedule import TrainOptions, begin_momentum, build_optimizer

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
        tmp_path, CountingSamples(4), epochs=20, batch_size=4, schedule="multistep", device=torch.device("cuda")
    )
    assert trainer.take_step.scaler.is_enabled()
    trainer.fit()
    losses = [row["loss"] for row in trainer.history]
    assert losses[-1] < 0.7 * losses[0]


def test_skipped_steps_leave_weights_and_momentum_alone():
    layer = torch.nn.Linear(3, 2).cuda()
    optimizer = build_optimizer(layer, TrainOptions(optimizer="sgd", learning_rate=0.1, weight_decay=0.0))
    begin_momentum(optimizer)
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


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("ratio", [2, -1])
def test_roi_align_has_the_same_gradient_every_time_where_it_must(ratio, deterministic):
    rois = rois_everywhere(2000, 400.0).cuda()
    weights = torch.randn(2000, 64, 7, 7, device="cuda")
    feature = torch.randn(2, 64, 100, 120, device="cuda")
    rule = (7, 0.25, ratio, False)
    one, other = (gradients(lambda *inputs: pool_level(*inputs, *rule), feature, rois, weights) for _ in range(2))
    assert torch.equal(one[1], other[1])
    torch.use_deterministic_algorithms(False)
    usual = gradients(lambda *inputs: pool_level(*inputs, *rule), feature, rois, weights)
    torch.testing.assert_close(one[0], usual[0])
    torch.testing.assert_close(one[1], usual[1], rtol=1e-3, atol=1e-2)


def test_deterministic_training_gives_the_same_weights(tmp_path, deterministic):
    runs = []
    for name in ("one", "other"):
        trainer = make_trainer(
            tmp_path / name, CountingSamples(8), epochs=2, deterministic=True, device=torch.device("cuda")
        )
        trainer.fit()
        runs.append(trainer.model.state_dict())
    assert all(torch.equal(value, runs[1][name]) for name, value in runs[0].items())
