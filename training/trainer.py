"""Approximate joint training (Ren et al. 2015, section 3.2): one backward pass through RPN and detector losses."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from runtime.errors import ArtifactError, RunError
from runtime.files import atomic_output
from runtime.spec import DetectorSpec
from training.checkpoint import load_weights, read_checkpoint, save_checkpoint
from training.curves import write_curves
from training.loader import epoch_batches, training_loader
from training.losses import Targets, TrainSettings
from training.models.detectors import FasterRcnn
from training.schedule import TrainOptions, build_optimizer, learning_rate_at

Validate = Callable[[FasterRcnn], dict[str, float]]


class Trainer:
    """Trains `model` on `samples` and keeps a run folder.

    Folder: `last.pt` (with optimizer and position, for --resume), `best.pt` (highest validation AP, half-precision
    storage, what is shipped and exported), `metrics.jsonl` (one line per epoch) and `curves.png`.
    """

    def __init__(
        self,
        *,
        model: FasterRcnn,
        spec: DetectorSpec,
        samples: Any,
        validate: Validate,
        options: TrainOptions,
        settings: TrainSettings,
        folder: Path,
        device: torch.device,
        notes: dict[str, str],
    ) -> None:
        self.model = model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.spec = spec
        self.samples = samples
        self.validate = validate
        self.options = options
        self.settings = settings
        self.folder = folder
        self.device = device
        self.notes = notes
        self.optimizer = self._build_optimizer()
        half = options.mixed_precision and device.type == "cuda" and not options.bfloat16
        self.autocast_type = torch.bfloat16 if options.bfloat16 else torch.float16 if half else None
        self.scaler = torch.amp.GradScaler(device.type, enabled=half)
        self.steps_per_epoch = len(self._batches(0))
        self.epoch = 0  # the epoch to go on with ...
        self.step = 0  # ... and the step in it
        self.best_ap = -1.0
        self.seconds = 0.0  # spent training, over all resumed runs
        self.history: list[dict[str, float]] = []

    def fit(self) -> None:
        """Train the epochs that are left; on Ctrl-C save the position and raise KeyboardInterrupt again."""
        try:
            while self.epoch < self.options.epochs:
                losses = self._train_epoch()
                self._finish_epoch(losses)
        except KeyboardInterrupt:
            self.save_last()
            print(
                f"\nstopped in epoch {self.epoch + 1} at step {self.step}: --resume goes on from {self.folder}/last.pt"
            )
            raise

    def _build_optimizer(self) -> torch.optim.Optimizer:
        return build_optimizer(self.model, self.options)

    def _batches(self, epoch: int) -> list[list[tuple[int, int]]]:
        """What an epoch trains on: (index, draw) of each picture of each step."""
        return epoch_batches(len(self.samples), self.options.batch_size, epoch, self.options.seed)

    def _train_epoch(self) -> dict[str, float]:
        self.model.train()
        batches = self._batches(self.epoch)[self.step :]
        loader = training_loader(self.samples, batches, self.spec, seed=self.options.seed, workers=self.options.workers)
        title = f"epoch {self.epoch + 1}/{self.options.epochs}"
        means: dict[str, float] = {}
        with tqdm(
            loader, desc=title, initial=self.step, total=self.steps_per_epoch, unit="step", mininterval=1.0
        ) as bar:
            for batch in bar:
                started = time.monotonic()
                losses = self._train_step(batch)
                self.step += 1
                self.seconds += time.monotonic() - started
                for name, value in losses.items():
                    means[name] = 0.98 * means.get(name, value) + 0.02 * value
                bar.set_postfix({name: f"{value:.3f}" for name, value in means.items()}, refresh=False)
        return means

    def _train_step(self, batch: Any) -> dict[str, float]:
        images, im_info, targets, _ = batch
        images = images.to(self.device, memory_format=torch.channels_last)
        targets = [Targets(boxes.to(self.device), labels.to(self.device)) for boxes, labels in targets]
        position = self.epoch * self.steps_per_epoch + self.step
        torch.manual_seed(
            self.options.seed * 1_000_003 + position
        )  # sampling of anchors and rois; the same when resumed
        rate = learning_rate_at(position, self.options.epochs * self.steps_per_epoch, self.options)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("rate_factor", 1.0)
        with torch.autocast(self.device.type, dtype=self.autocast_type, enabled=self.autocast_type is not None):
            losses = self.model.losses(images, im_info.to(self.device), targets, self.settings)
        total: Tensor = sum(losses)  # type: ignore[assignment]
        if not torch.isfinite(total):
            parts = ", ".join(f"{name} {float(value.detach()):.3g}" for name, value in losses._asdict().items())
            raise RunError(f"the loss is not finite at step {position} ({parts}); lower --learning-rate and --resume.")
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(total).backward()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.options.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        values = {name: float(value.detach()) for name, value in losses._asdict().items()}
        return {"loss": float(total.detach()), **values}

    def _finish_epoch(self, losses: dict[str, float]) -> None:
        metrics = self.validate(self.model)
        self.epoch, self.step = self.epoch + 1, 0
        row = {"epoch": self.epoch, **losses, **metrics, "minutes": self.seconds / 60.0}
        self.history.append({name: round(float(value), 5) for name, value in row.items()})
        with atomic_output(self.folder / "metrics.jsonl") as path:
            path.write_text("".join(json.dumps(line) + "\n" for line in self.history), encoding="utf-8")
        write_curves(self.folder / "curves.png", self.history)
        print(f"epoch {self.epoch}: AP {metrics['ap']:.3f}  AP50 {metrics['ap50']:.3f}  loss {losses['loss']:.3f}")
        if metrics["ap"] > self.best_ap:
            self.best_ap = metrics["ap"]
            made = {"ap": f"{metrics['ap']:.4f}", "ap50": f"{metrics['ap50']:.4f}", "epoch": str(self.epoch)}
            made["training_minutes"] = f"{self.seconds / 60.0:.1f}"
            self._save_best({**self.notes, **made})
        self.save_last()

    def _save_best(self, notes: dict[str, str]) -> None:
        save_checkpoint(self.folder / "best.pt", self.model, self.spec, half=True, notes=notes)

    def save_last(self) -> None:
        """Write `last.pt`: full precision, with all that --resume needs."""
        save_checkpoint(
            self.folder / "last.pt", self.model, self.spec, training_state=self._position(), notes=self.notes
        )

    def _position(self) -> dict[str, Any]:
        """What --resume needs beside the weights; `_go_to` takes it."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "best_ap": self.best_ap,
            "seconds": self.seconds,
            "history": self.history,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def resume(self) -> None:
        """Go on from the folder's `last.pt`.

        Raises:
            ArtifactError: no such file, not a training checkpoint, or of another spec.
        """
        path = self.folder / "last.pt"
        content = read_checkpoint(path)
        state = content.get("training")
        if not isinstance(state, dict):
            raise ArtifactError(f"{path} holds no training position: resume from a last.pt that training wrote.")
        if content["digest"] != self.spec.digest():
            raise ArtifactError(
                f"{path} was trained with another spec: give the same --architecture and data, or a new --output."
            )
        load_weights(self.model, content["model"], path)
        self._go_to(state)

    def _go_to(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.step = int(state["epoch"]), int(state["step"])
        self.best_ap, self.seconds = float(state["best_ap"]), float(state["seconds"])
        self.history = list(state["history"])
