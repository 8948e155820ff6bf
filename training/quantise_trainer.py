"""Joint training of a fake-quantised detector: steps instead of epochs, ranges beside weights."""

from __future__ import annotations

from itertools import count
from typing import Any

import torch

from runtime.errors import UserError
from training.checkpoint import save_checkpoint
from training.fake_quantise import FakeQuantisation
from training.loader import epoch_batches
from training.position import check_start, own_position
from training.quantise_ranges import ObservedImages, weights_digest, write_ranges
from training.schedule import build_optimizer
from training.trainer import Trainer

RANGE_RATE = 100.0  # learning rate of the ranges' logarithms, in units of the weights': see docs/training.md
RANGES_NAME = "ranges.json"


class QuantisedTrainer(Trainer):
    """A Trainer whose model is fake-quantised; one of its epochs is a round of `steps_per_round` steps.

    Folder: as Trainer's, but `best.pt` is in full precision, since rounding to float16 would move weights from one
    INT8 number to the next, and `ranges.json` belongs to it.

    Args:
        quantised: the model's ranges.
        images: what they were observed on.
        steps_per_round: optimizer steps between two validations; options.epochs is the number of rounds.
        arguments: Trainer's.
    """

    def __init__(
        self, *, quantised: FakeQuantisation, images: ObservedImages, steps_per_round: int, **arguments: Any
    ) -> None:
        self.quantised = quantised
        self.images = images
        self.steps_per_round = steps_per_round
        super().__init__(**arguments)
        self.start = {"weights": weights_digest(self.model.state_dict()), "images": images.digest}
        self.start_ap: dict[str, float] = {}  # before fine-tuning: "fp32" and "int8"

    def begin(self, fp32_ap: float) -> None:
        """Measure the model as quantised without fine-tuning; it is the best one so far."""
        metrics = self.validate(self.model)
        self.start_ap = {"fp32": fp32_ap, "int8": metrics["ap"]}
        self.best_ap = metrics["ap"]
        self._save_best({**self.notes, "ap": f"{metrics['ap']:.4f}", "ap50": f"{metrics['ap50']:.4f}", "epoch": "0"})
        self.save_last()

    def _build_optimizer(self) -> torch.optim.Optimizer:
        """Weights as always, and the ranges at a rate of their own."""
        optimizer = build_optimizer(self.model, self.options)
        ranges = list(self.quantised.log_amax.values())
        optimizer.add_param_group({"params": ranges, "weight_decay": 0.0, "rate_factor": RANGE_RATE, "clipped": False})
        return optimizer

    def _batches(self, epoch: int) -> list[list[tuple[int, int]]]:
        """The steps of a round: as many as asked for, running through the data as often as that takes."""
        first = epoch * self.steps_per_round
        batches: list[list[tuple[int, int]]] = []
        for lap in count():
            batches += epoch_batches(len(self.samples), self.options.batch_size, lap, self.options.seed)
            if len(batches) >= first + self.steps_per_round:
                return batches[first : first + self.steps_per_round]
        raise AssertionError

    def _save_best(self, notes: dict[str, str]) -> None:
        start = {f"{name}_ap_before": f"{ap:.4f}" for name, ap in self.start_ap.items()}
        save_checkpoint(self.folder / "best.pt", self.model, self.spec, notes={**notes, **start})
        write_ranges(
            self.folder / RANGES_NAME,
            self.quantised.ranges(),
            spec_digest=self.spec.digest(),
            weights=self.model.state_dict(),
            images=self.images,
        )

    def _position(self) -> dict[str, Any]:
        own = {
            "log_amax": self.quantised.state_dict(),
            "start": self.start,
            "start_ap": self.start_ap,
            "steps_per_round": self.steps_per_round,
        }
        return {**super()._position(), "quantised": own}

    def _go_to(self, state: dict[str, Any]) -> None:
        own = own_position(state, "quantised", self.folder, "a run that was not quantised")
        options = "--weights, --data, --observe and --seed"
        check_start(own.get("start"), self.start, self.folder, "other weights or images", options)
        if own["steps_per_round"] != self.steps_per_round:
            raise UserError(
                f"{self.folder} has rounds of {own['steps_per_round']} steps, not {self.steps_per_round}: "
                "resume with the same --steps and --rounds."
            )
        super()._go_to(state)
        self.quantised.load_state_dict(own["log_amax"])
        self.start_ap = dict(own["start_ap"])
