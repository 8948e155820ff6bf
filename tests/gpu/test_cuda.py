"""What CI cannot run: PyTorch and ONNX Runtime on an NVIDIA GPU against themselves on the CPU. `make test-gpu`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from export.parity import Tolerances, compare_detections, report_of
from export.to_onnx import export_onnx
from runtime.backends.nvidia import gpu_count
from runtime.conveyor.scene import render_scene
from runtime.detector import Detector, open_detector
from tests.training.test_trainer import CountingSamples, make_trainer
from training.backend import TorchBackend
from training.checkpoint import load_checkpoint

DEMO = Path(__file__).resolve().parents[2] / "assets" / "conveyor.pt"
LOOSE = Tolerances(box_px=0.5, score=1e-2, iou=1e-2)  # TF32 convolutions, sums in another order

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(gpu_count() == 0, reason="no NVIDIA GPU with a driver on this machine"),
]


@pytest.fixture(scope="module")
def frames():
    return [render_scene(21, index).frame for index in range(4)]


def check_same(name, reference, candidate, rule):
    compared = zip(reference, candidate, strict=True)
    report = report_of([compare_detections(name, one, other, rule, LOOSE) for one, other in compared], rule, LOOSE)
    print(report.table())
    report.check()


def test_torch_on_the_gpu_detects_what_it_detects_on_the_cpu(frames):
    model, spec = load_checkpoint(DEMO)
    reference = Detector(TorchBackend(model, spec))(frames)
    candidate = Detector(TorchBackend(model.to("cuda"), spec))(frames)
    check_same("torch, cuda", reference, candidate, spec.detection)


@pytest.mark.parametrize("provider", ["cuda"])
def test_onnxruntime_on_the_gpu_detects_what_it_detects_on_the_cpu(frames, tmp_path, provider):
    path = tmp_path / "model.onnx"
    export_onnx(*load_checkpoint(DEMO), path)
    with open_detector(path, providers=["cpu"]) as cpu, open_detector(path, providers=[provider]) as gpu:
        check_same(gpu.description, cpu(frames), gpu(frames), cpu.spec.detection)


def test_mixed_precision_training_learns(tmp_path):
    trainer = make_trainer(
        tmp_path, CountingSamples(4), epochs=12, batch_size=4, schedule="multistep", device=torch.device("cuda")
    )
    assert trainer.mixed
    trainer.fit()
    losses = [row["loss"] for row in trainer.history]
    assert losses[-1] < 0.7 * losses[0]
