"""The loop of training: a task's losses, one optimizer step after the other, and a run folder."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from runtime.spec import DetectorSpec
from training.checkpoint import load_weights, save_checkpoint
from training.curves import write_history
from training.data.batch import Batch
from training.distributed import begin_together, check_launch, gather, is_first_process, own_parts, wait_for_all
from training.ema import AveragedWeights
from training.events import EventLog
from training.interrupts import postponed_interrupt
from training.loader import TrainingBatches, epoch_batches, training_loader
from training.models.detectors import FasterRcnn
from training.numerics import set_numerics
from training.optimizer_step import OptimizerStep
from training.position import check_fixed_options, fixed_options, load_optimizer, read_position
from training.schedule import TrainOptions, build_optimizer, learning_rate_at
from training.step_log import Row, StepLog
from training.synced_norms import synchronise_norms
from training.tasks import Task, freeze_all_but, set_training_mode

Validate = Callable[[FasterRcnn], dict[str, float]]  # what was measured; the highest value of the first is the best
MEAN_DECAY = 0.98  # of the running means of losses: about the last 50 steps


class Trainer:
    """Trains `model` on `samples` and keeps a run folder; each of several processes has one (training/distributed.py).

    Folder: `last.pt` (with optimizer and position, for --resume), `best.pt` (highest validation AP, half-precision
    storage, what is shipped and exported), `metrics.jsonl` (one line per epoch), `curves.png`, and `tensorboard`.

    Raises:
        UserError: options that do not fit each other, the device or the number of processes.
    """

    def __init__(
        self,
        *,
        model: FasterRcnn,
        spec: DetectorSpec,
        samples: Any,
        validate: Validate,
        options: TrainOptions,
        task: Task,
        folder: Path,
        device: torch.device,
        notes: dict[str, str],
    ) -> None:
        check_launch()
        set_numerics(options, device)
        self.model = model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        synchronise_norms(self.model, device)
        self.spec = spec
        self.samples = samples
        self.validate = validate
        self.options = options
        self.task = task
        self.trained = task.trained(self.model)
        freeze_all_but(self.model, self.trained)
        self.folder = folder
        self.device = device
        self.notes = notes
        self.optimizer = self._build_optimizer()
        self.take_step = OptimizerStep(
            model=self.model, task=task, optimizer=self.optimizer, options=options, device=device
        )
        self.averaged = AveragedWeights(self.model, options.ema) if options.ema else None
        self.log = StepLog(device, may_skip=self.take_step.may_skip)
        self.events: EventLog | None = None
        self.keys: list[list[tuple[int, int]]] = []  # what the loader reads next; one loader for all epochs,
        self.loader: TrainingBatches | None = None  # so that its workers start once
        first_epoch = self._batches(0)
        own_parts(first_epoch, options.accumulate)  # complains now, not at the first step
        self.steps_per_epoch = len(first_epoch)
        self.epoch = 0  # the epoch to go on with ...
        self.step = 0  # ... and the step in it
        self.best_ap = -1.0
        self.seconds = 0.0  # spent training, over all resumed runs
        self.clock = self.saved = time.monotonic()  # of the last reading of the log, and of the last save
        self.means: Row = {}  # running means of this epoch's losses
        self.history: list[Row] = []

    @property
    def position(self) -> int:
        """The number of the next step, from 0."""
        return self.epoch * self.steps_per_epoch + self.step

    def fit(self) -> None:
        """Train the epochs that are left; on Ctrl-C save the position and raise KeyboardInterrupt again.

        Raises:
            RunError: the loss or a gradient is not finite, or another process is gone.
        """
        begin_together([*self.model.state_dict().values(), *self.take_step.learning], (self.epoch, self.step))
        if self.options.tensorboard and is_first_process() and self.epoch < self.options.epochs:
            self.events = EventLog(self.folder, self.position)
        try:
            while self.epoch < self.options.epochs:
                self._finish_epoch(self._train_epoch())
        except KeyboardInterrupt:
            with postponed_interrupt():  # another Ctrl-C, torchrun's for instance
                self.save_last()
                where = f"epoch {self.epoch + 1} at step {self.step}"
                print(f"\nstopped in {where}: --resume goes on from {self.folder}/last.pt", flush=True)
            raise
        finally:
            self.loader = None  # ends its workers
            if self.events is not None:
                self.events.close()
        wait_for_all()  # the last files of the first process are there

    def _build_optimizer(self) -> torch.optim.Optimizer:
        return build_optimizer(self.model, self.options)

    def _batches(self, epoch: int) -> list[list[tuple[int, int]]]:
        """What an epoch trains on: (index, draw) of each picture of each step, over all processes."""
        return epoch_batches(len(self.samples), self.options.batch_size, epoch, self.options.seed)

    def _train_epoch(self) -> Row:
        """The steps that are left of an epoch; returns what was counted on the way."""
        set_training_mode(self.model, self.trained)
        loader = self._rest_of_epoch()
        title = f"epoch {self.epoch + 1}/{self.options.epochs}"
        shown = {"initial": self.step, "total": self.steps_per_epoch, "unit": "step", "mininterval": 1.0}
        self.clock, begun = time.monotonic(), (self.seconds, self.step)
        with tqdm(desc=title, disable=not is_first_process(), **shown) as bar:
            for parts in _grouped(loader, self.options.accumulate):
                if self.events is not None:
                    self.events.add_pictures(self.position, parts[0], self.spec)
                with postponed_interrupt():  # no optimizer step is left half done
                    self._train_step(*parts)
                    self.step += 1
                bar.update()
                if self.log.is_due:
                    self._read_log(bar)
                if self._is_time_to_save():
                    self.save_last()
            self._read_log(bar)
        seconds, steps = self.seconds - begun[0], self.step - begun[1]
        rate = {"images_per_second": steps * self.options.batch_size / seconds} if steps else {}
        return {**rate, "unreadable_images": sum(gather(loader.unreadable))}

    def _rest_of_epoch(self) -> TrainingBatches:
        self.keys[:] = own_parts(self._batches(self.epoch)[self.step :], self.options.accumulate)
        if self.loader is None:
            options = self.options
            self.loader = training_loader(
                self.samples, self.keys, self.spec, seed=options.seed, workers=options.workers
            )
        self.loader.unreadable = 0
        return self.loader

    def _train_step(self, *parts: Batch) -> None:
        """One optimizer step on this process's share of a batch, in parts of equally many images."""
        measured = self.take_step(parts, number=self.position, learning_rate=self._learning_rate(self.position))
        if self.averaged is not None:
            self.averaged.update(self.model)
        self.log.add(self.position, *measured)

    def _learning_rate(self, position: int) -> float:
        return learning_rate_at(position, self.options.epochs * self.steps_per_epoch, self.options)

    def _read_log(self, bar: tqdm[Any] | None = None) -> None:
        """See what the last steps measured: raises RunError where a loss is not finite."""
        rows = self.log.read()
        if not rows:
            return
        now = time.monotonic()
        rate = len(rows) * self.options.batch_size / (now - self.clock)
        self.seconds, self.clock = self.seconds + now - self.clock, now
        for position, row in rows:
            norm = row.pop("gradient_norm")
            for name, value in row.items():
                self.means[name] = MEAN_DECAY * self.means.get(name, value) + (1 - MEAN_DECAY) * value
            if self.events is not None:
                learning_rate = self._learning_rate(position)
                own = {"gradient_norm": norm, "learning_rate": learning_rate, "images_per_second": rate}
                self.events.add_step(position, {**row, **own})
        if bar is not None:
            shown = {name: f"{value:.3f}" for name, value in self.means.items()}
            bar.set_postfix({**shown, "images/s": f"{rate:.1f}"}, refresh=False)

    def _is_time_to_save(self) -> bool:
        options = self.options
        by_steps = options.save_steps > 0 and self.step % options.save_steps == 0
        by_time = options.save_minutes > 0 and time.monotonic() - self.saved >= 60 * options.save_minutes
        return by_steps or by_time

    def _finish_epoch(self, counted: Row) -> None:
        """Validate, write what the epoch gave, and go to the next one."""
        number = self.epoch + 1
        is_validated = number % self.options.validate_every == 0 or number == self.options.epochs
        with self._best_weights():
            metrics = self.validate(self.model) if is_validated else {}
            with postponed_interrupt():
                self.epoch, self.step = number, 0
                self._record_epoch({**self.means, **metrics, **counted})
                self.means = {}
                score = next(iter(metrics.values()), self.best_ap)
                if score > self.best_ap:
                    self.best_ap = score
                    made = {**{name: f"{value:.4f}" for name, value in metrics.items()}, "epoch": str(number)}
                    if is_first_process():
                        self._save_best({**self.notes, **made, "training_minutes": f"{self.seconds / 60.0:.1f}"})
        scores = "  ".join(f"{name.upper()} {value:.3f}" for name, value in metrics.items())
        if is_first_process():
            print(f"epoch {number}: {scores}  loss {self.history[-1].get('loss', math.nan):.3f}", flush=True)
        if self.events is not None:
            self.events.add_epoch(self.position, metrics)
        self.save_last()

    def _best_weights(self) -> contextlib.AbstractContextManager[None]:
        """While the block runs, the model has the weights that are validated and shipped: their average, if asked."""
        return contextlib.nullcontext() if self.averaged is None else self.averaged.used_by(self.model)

    def _record_epoch(self, values: Row) -> None:
        row = {"epoch": float(self.epoch), **values, "minutes": self.seconds / 60.0}
        if self.take_step.may_skip:
            row["skipped_steps"] = self.log.skipped
        self.history.append({name: round(float(value), 5) for name, value in row.items()})
        if is_first_process():
            write_history(self.folder, self.history)

    def _save_best(self, notes: dict[str, str]) -> None:
        save_checkpoint(self.folder / "best.pt", self.model, self.spec, half=True, notes=notes)

    def save_last(self) -> None:
        """Write `last.pt`, in the first process: full precision, with all that --resume needs.

        Raises:
            RunError: a step was taken since the last one that had a loss which is not finite.
        """
        self._read_log()
        self.saved = time.monotonic()
        if is_first_process():
            path, position = self.folder / "last.pt", self._position()
            save_checkpoint(path, self.model, self.spec, training_state=position, notes=self.notes)

    def _position(self) -> dict[str, Any]:
        """What --resume needs beside the weights; `_go_to` takes it."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "best_ap": self.best_ap,
            "seconds": self.seconds,
            "means": self.means,
            "history": self.history,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.take_step.scaler.state_dict(),
            "skipped": self.log.skipped,
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
            "options": fixed_options(self.options, self.steps_per_epoch),
        }

    def resume(self) -> None:
        """Go on from the folder's `last.pt`.

        Raises:
            ArtifactError: no such file, not a training checkpoint, or of another spec.
            UserError: options that the position does not fit.
        """
        path = self.folder / "last.pt"
        weights, state = read_position(path, self.spec)
        check_fixed_options(state, fixed_options(self.options, self.steps_per_epoch), self.folder)
        load_weights(self.model, weights, path)
        self._go_to(state)

    def _go_to(self, state: dict[str, Any]) -> None:
        load_optimizer(self.optimizer, state["optimizer"])
        if state["scaler"]:  # empty: of a run in a precision that scales nothing
            self.take_step.scaler.load_state_dict(state["scaler"])
        if self.averaged is not None:
            self.averaged = AveragedWeights(self.model, self.options.ema)  # of a run that had no average until now
            if state.get("averaged") is not None:
                self.averaged.load_state_dict(state["averaged"])
        self.epoch, self.step = int(state["epoch"]), int(state["step"])
        self.best_ap, self.seconds = float(state["best_ap"]), float(state["seconds"])
        self.log.skipped = int(state.get("skipped", 0))
        self.means, self.history = dict(state.get("means", {})), list(state["history"])


def _grouped(batches: Iterable[Batch], count: int) -> Iterator[list[Batch]]:
    """Lists of `count` batches that follow each other."""
    iterator = iter(batches)
    while group := list(itertools.islice(iterator, count)):
        yield group
