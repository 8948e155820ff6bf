"""A Trainer of a DistillTask: the adapters learn with the student and are kept for --resume, but are not shipped."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from training.distill_task import DistillTask
from training.position import check_start, own_position
from training.quantise_ranges import weights_digest
from training.schedule import build_optimizer
from training.trainer import Trainer


class DistillTrainer(Trainer):
    """Folder: as Trainer's; `last.pt` has the adapters in its training position, `best.pt` is the student alone.

    Args:
        task: what is minimised; it is moved to `device`.
        arguments: Trainer's.
    """

    def __init__(self, *, task: DistillTask, device: torch.device, **arguments: Any) -> None:
        self.distillation = task.to(device)
        super().__init__(task=task, device=device, **arguments)
        teacher = weights_digest(task.teacher.state_dict())
        self.start = {"teacher": teacher, "settings": dataclasses.asdict(task.rule)}

    def _build_optimizer(self) -> torch.optim.Optimizer:
        """The student's parameters and the adapters'."""
        optimizer = build_optimizer(self.model, self.options)
        adapters = list(self.distillation.adapters.parameters())
        if adapters:
            optimizer.add_param_group({"params": adapters, "weight_decay": self.options.weight_decay})
        return optimizer

    def _position(self) -> dict[str, Any]:
        own = {"adapters": self.distillation.adapters.state_dict(), "start": self.start}
        return {**super()._position(), "distillation": own}

    def _go_to(self, state: dict[str, Any]) -> None:
        own = own_position(state, "distillation", self.folder, "a run without a teacher")
        what = "another teacher or other weights of the terms"
        check_start(own.get("start"), self.start, self.folder, what, "--teacher and options")
        super()._go_to(state)
        self.distillation.adapters.load_state_dict(own["adapters"])
