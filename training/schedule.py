"""Optimizers and learning-rate schedules."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from runtime.errors import UserError


@dataclass(frozen=True)
class TrainOptions:
    """How to train; what is trained stands in the DetectorSpec."""

    epochs: int = 12
    batch_size: int = 8
    optimizer: str = "adamw"  # or sgd
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    momentum: float = 0.9  # of sgd
    warmup_steps: int = 200
    schedule: str = "cosine"  # or multistep: a tenth after 2/3 and again after 8/9 of the steps
    clip_norm: float = 5.0
    seed: int = 0
    workers: int = 1
    mixed_precision: bool = True  # float16 autocast, on a GPU only
    bfloat16: bool = False  # bfloat16 autocast, on a GPU or on a CPU with AVX512-BF16 or AMX

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "learning_rate", "clip_norm"):
            value = getattr(self, name)
            if not value > 0:
                raise UserError(f"--{name.replace('_', '-')} is {value}: expected a number above 0.")


def build_optimizer(model: nn.Module, options: TrainOptions) -> torch.optim.Optimizer:
    """SGD with momentum or AdamW; no weight decay on biases and normalisation."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": options.weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    if options.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=options.learning_rate, momentum=options.momentum)
    return torch.optim.AdamW(groups, lr=options.learning_rate)


def learning_rate_at(step: int, total_steps: int, options: TrainOptions) -> float:
    """Linear warm-up from a hundredth of the rate, then the schedule: a function of the step alone, so resumable."""
    warmup = min(options.warmup_steps, total_steps // 2)
    if step < warmup:
        return options.learning_rate * (0.01 + 0.99 * step / warmup)
    progress = (step - warmup) / max(1, total_steps - warmup)
    if options.schedule == "multistep":
        return options.learning_rate * 0.1 ** ((progress >= 2 / 3) + (progress >= 8 / 9))
    return options.learning_rate * max(0.01, 0.5 * (1.0 + math.cos(math.pi * progress)))
