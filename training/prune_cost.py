"""What a detector costs: parameters, multiply-accumulates, and the time of one image on the CPU."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from runtime.progress import progress
from runtime.spec import InputSpec
from training.models.detectors import FasterRcnn

ROUNDS, MOST_SECONDS, FEWEST_ROUNDS = 30, 20.0, 5


@dataclass(frozen=True)
class Cost:
    """Of one image of `network_hw` px, with as many proposals as the spec allows."""

    network_hw: tuple[int, int]
    parameters: int
    macs: int  # multiply-accumulates of convolutions and fully connected layers
    cpu_ms: float  # median, batch 1, PyTorch, as many threads as it has


def measured_costs(models: Sequence[FasterRcnn]) -> list[Cost]:
    """The cost of each of the models, which see the same input and are timed in turns, so that all meet the same load.

    Args:
        models: on the CPU, in evaluation mode.
    """
    hw = network_hw(models[0].spec.input)
    images, im_info = torch.zeros(1, 3, *hw), torch.tensor([[*hw, 1.0, 1.0]])
    times = _times(models, images, im_info)
    return [
        Cost(
            hw, sum(value.numel() for value in model.parameters()), _macs(model, images, im_info), float(np.median(ms))
        )
        for model, ms in zip(models, times, strict=True)
    ]


def network_hw(spec: InputSpec) -> tuple[int, int]:
    """The canvas, or the largest landscape picture."""
    if spec.height is not None and spec.width is not None:
        return spec.height, spec.width
    height, width = (-(-side // spec.divisor) * spec.divisor for side in (spec.min_size, spec.max_size))
    return height, width


@torch.inference_mode()
def _times(models: Sequence[FasterRcnn], images: Tensor, im_info: Tensor) -> list[list[float]]:
    """ms of each run of each model, after one round that does not count."""
    rounds: list[list[float]] = []
    begun = time.monotonic()
    for index in progress(range(ROUNDS + 1), ROUNDS + 1, "timing", "round"):
        row = []
        for model in models:
            started = time.perf_counter()
            model(images, im_info)
            row.append(1e3 * (time.perf_counter() - started))
        rounds.append(row)
        if index >= FEWEST_ROUNDS and time.monotonic() - begun > MOST_SECONDS:
            break
    return [list(column) for column in zip(*rounds[1:], strict=True)]


@torch.no_grad()
def _macs(model: FasterRcnn, images: Tensor, im_info: Tensor) -> int:
    """Half the floating-point operations that torch counts."""
    with FlopCounterMode(display=False) as counter:
        model(images, im_info)
    return counter.get_total_flops() // 2
