"""Time steps of training beside torchvision's reference Faster R-CNN of the same weights, in turns, in one run.

    python training/benchmark.py                                   # ResNet-50-FPN, 800 x 1216, batch 8; wants a GPU
    python training/benchmark.py --architecture conveyor --size 288x384 --batch-size 4 --steps 2 --rounds 1

A step is forward, losses, backward and optimizer on a batch that is on the device already; learning rates are next to
nothing, so that every step does the same work. torchvision runs as its reference script does (float32), with that
script's --amp, and with --amp in channels_last; ours as training/train.py runs it, on a GPU with --amp's float16 and
channels_last, and once without the CUDA kernels of plugins/. PyTorch's switches (TF32) are ours for all. OUTPUT gets
all numbers; a bar chart with its name lies beside it.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import re
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

if not __package__:  # run by path: import from the clone's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from torch import Tensor, nn

from plugins.cuda_ops import cuda_kernels, without_cuda_kernels
from runtime.command import command_parser, run_command
from runtime.conveyor.scene import render_scene
from runtime.errors import UserError
from runtime.files import check_writable, write_json
from runtime.hardware import describe_machine
from runtime.plots import write_bars
from runtime.tables import format_table
from training.data.batch import Batch, to_batch
from training.data.sample import Sample
from training.models.detectors import FasterRcnn, build_detector
from training.models.specs import spec_for
from training.numerics import set_numerics
from training.optimizer_step import OptimizerStep
from training.peers import torchvision_detector
from training.random_weights import spread_weights
from training.run_folder import hardware_name
from training.schedule import TrainOptions, build_optimizer
from training.settings import TrainSettings
from training.step_log import StepLog
from training.tasks import JointTask

RATE = 1e-9  # the optimizer works as always and changes nothing that matters
Step = Callable[[], None]


class Contestant(NamedTuple):
    """One way to train; `is_ours` says whose."""

    name: str
    is_ours: bool
    step: Step


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(__doc__)
    parser.add_argument("--architecture", default="fasterrcnn_resnet50_fpn", help="a preset with an FPN")
    parser.add_argument("--size", default="800x1216", help="height x width of the pictures")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10, help="steps of a turn")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contestant")
    parser.add_argument("--output", type=Path, default=Path("output/training-benchmark.json"), help="file for numbers")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; see build_parser."""
    arguments = build_parser().parse_args(argv)
    for name in ("batch_size", "steps", "rounds"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(arguments, name)}: expected 1 or more.")
    check_writable(arguments.output)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, batch = prepared(arguments)
    contestants = all_contestants(model, batch, device)
    seconds: dict[str, list[float]] = {one.name: [] for one in contestants}
    for turn in range(arguments.rounds + 1):  # the first one warms up
        for one in contestants:
            took = timed(one.step, arguments.steps, device)
            print(f"round {turn}: {one.name}, {1000 * took:.1f} ms per step", flush=True)
            if turn:
                seconds[one.name].append(took)
    report(contestants, seconds, arguments, device)
    return 0


def prepared(arguments: argparse.Namespace) -> tuple[FasterRcnn, Batch]:
    """A detector whose random weights find many objects, and a batch of generated pictures."""
    height, width = picture_size(arguments.size)
    spec = spec_for(arguments.architecture, input={"min_size": min(height, width), "max_size": max(height, width)})
    samples = []
    for index in range(arguments.batch_size):
        scene = render_scene(5, index, (height, width))
        crowd = np.zeros(len(scene.labels), bool)
        samples.append(Sample(scene.frame, scene.boxes_xyxy, scene.labels + 1, crowd, index))
    model = spread_weights(build_detector(spec), 0, [samples[0].frame])
    return model, to_batch(samples, spec)


def picture_size(text: str) -> tuple[int, int]:
    """Height and width.

    Raises:
        UserError: it is not two numbers.
    """
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise UserError(f"--size {text}: expected height x width in px, 800x1216 for instance.")
    return int(match[1]), int(match[2])


def all_contestants(model: FasterRcnn, batch: Batch, device: torch.device) -> list[Contestant]:
    """Ours and torchvision's, each with a copy of the weights."""
    on_gpu = device.type == "cuda"
    ours = [Contestant("EdgeRCNN", True, our_step(model, batch, device, with_kernels=True))]
    if on_gpu and cuda_kernels() is not None:
        step = our_step(model, batch, device, with_kernels=False)
        ours.append(Contestant("EdgeRCNN, without its CUDA kernels", True, step))
    modes = [("float32", False, False), *([("amp", True, False), ("amp, channels_last", True, True)] if on_gpu else [])]
    peers = [
        Contestant(f"torchvision, {name}", False, torchvision_step(model, batch, device, amp=amp, channels_last=last))
        for name, amp, last in modes
    ]
    return [*peers, *ours]


def our_step(model: FasterRcnn, batch: Batch, device: torch.device, *, with_kernels: bool) -> Step:
    """One step of training/trainer.py, its log read as seldom as there."""
    copy = build_detector(model.spec)
    copy.load_state_dict(model.state_dict())
    copy = copy.train().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    options = TrainOptions(batch_size=len(batch.images), optimizer="sgd", learning_rate=RATE)
    set_numerics(options, device)  # for torchvision too: products of float32 use TF32
    optimizer = build_optimizer(copy, options)
    take_step = OptimizerStep(
        model=copy, task=JointTask(TrainSettings()), optimizer=optimizer, options=options, device=device
    )
    log, numbers, on_device = StepLog(device, may_skip=take_step.may_skip), itertools.count(), _to_device(batch, device)

    def step() -> None:
        number = next(numbers)
        with nullcontext() if with_kernels else without_cuda_kernels():
            log.add(number, *take_step([on_device], number=number, learning_rate=RATE))
        if log.is_due:
            log.read()

    return step


def torchvision_step(model: FasterRcnn, batch: Batch, device: torch.device, *, amp: bool, channels_last: bool) -> Step:
    """One step as references/detection/engine.py of torchvision makes it."""
    peer = torchvision_detector(model).train().to(device)
    if channels_last:
        peer = peer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD([p for p in peer.parameters() if p.requires_grad], lr=RATE, momentum=0.9)
    scaler = torch.amp.GradScaler(device.type, enabled=amp)
    images = [as_picture(image, peer).to(device) for image in batch.images]
    targets = [{"boxes": one.boxes.to(device), "labels": one.labels.to(device)} for one in batch.targets]

    def step() -> None:
        with torch.autocast(device.type, enabled=amp):
            loss_dict = peer(images, targets)
            losses = sum(loss_dict.values())
        if not np.isfinite(losses.item()):
            raise UserError("torchvision's loss is not finite: choose another --size.")
        optimizer.zero_grad()
        scaler.scale(losses).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def timed(step: Step, count: int, device: torch.device) -> float:
    """Mean seconds of `count` steps, to the end of the device's work."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(count):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / count


def report(
    contestants: list[Contestant], seconds: dict[str, list[float]], arguments: argparse.Namespace, device: torch.device
) -> None:
    """Print the table, write numbers and chart."""
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    best = min(medians[one.name] for one in contestants if one.is_ours)
    rows, bars = [], []
    for one in contestants:
        milliseconds, rate = 1000 * medians[one.name], arguments.batch_size / medians[one.name]
        ratio = None if one.is_ours else f"{medians[one.name] / best:.2f}"
        rows.append((one.name, f"{milliseconds:.1f}", f"{rate:.1f}", ratio))
        per_image = [1000 * value / arguments.batch_size for value in seconds[one.name]]
        name = f"ours: {one.name}" if one.is_ours else one.name
        label = f"{rate:.1f} images/s"
        p95 = float(np.percentile(per_image, 95))
        bars.append({"name": name, "median_ms": statistics.median(per_image), "p95_ms": p95, "label": label})
    hardware = hardware_name(device)
    title = f"{arguments.architecture}, {arguments.size}, batch {arguments.batch_size}, {hardware}"
    print(f"\n{title}\n{format_table(('training', 'ms/step', 'images/s', 'ours is faster'), rows)}")
    content: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "hardware": hardware,
        "machine": describe_machine(),
        "architecture": arguments.architecture,
        "size": arguments.size,
        "batch_size": arguments.batch_size,
        "seconds_per_step": seconds,
        "images_per_second": {name: arguments.batch_size / value for name, value in medians.items()},
        "ratio_to_best_of_ours": {one.name: medians[one.name] / best for one in contestants if not one.is_ours},
    }
    write_json(arguments.output, content, indent=2)
    write_bars(arguments.output.with_suffix(".png"), title, [{**bar, "stages_ms": {}} for bar in bars])


def _to_device(batch: Batch, device: torch.device) -> Batch:
    targets = [type(one)(*(value.to(device) for value in one)) for one in batch.targets]
    images = batch.images.to(device, memory_format=torch.channels_last)
    return batch._replace(images=images, im_info=batch.im_info.to(device), targets=targets)


def as_picture(image: Tensor, peer: nn.Module) -> Tensor:
    """A normalised network input [3, H, W] back to values from 0 to 1, which torchvision normalises itself."""
    transform: Any = peer.transform
    mean, std = (torch.tensor(values)[:, None, None] for values in (transform.image_mean, transform.image_std))
    return (image * std + mean).clamp(0, 1)


if __name__ == "__main__":
    sys.exit(run_command(main))
