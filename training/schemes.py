"""The published ways to train the two networks of a Faster R-CNN: each scheme is a row of trainings, or steps.

joint        RPN and detector in one backward pass ("approximate joint training")
alternating  the 4 steps of the paper, by which the two come to share their convolutional layers
staged       RPN, then the detector's own layers on its proposals, then both jointly

In step 3 of alternating the RPN's layers start afresh and in step 4 the detector's go on from step 2's, as the authors'
program has it (ShaoqingRen/faster_rcnn: both begin with the network of step 2; the RPN's layers in that are new ones).

Folder of a scheme with several steps: one run folder per step, `1-rpn` and so on, each with what a Trainer keeps; when
all are done, `best.pt` and `last.pt` of the last step, which have all parts of the detector, stand beside them.
Ref: Ren et al., Faster R-CNN (2015), section 3.2.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from runtime.errors import UserError
from runtime.files import atomic_output
from training.checkpoint import load_weights, read_checkpoint, save_checkpoint
from training.distributed import is_first_process
from training.models.detectors import FasterRcnn
from training.proposals import UnsharedDetector
from training.run_folder import check_run_folder
from training.schedule import TrainOptions
from training.settings import TrainSettings
from training.tasks import PARTS, DetectorTask, JointTask, RpnTask, Task
from training.trainer import Trainer, Validate


@dataclass(frozen=True)
class Step:
    """One training of a scheme.

    name: of its folder in the run folder; "" is the run folder itself.
    learns: the parts of the detector that change.
    begins_with: the step whose weights, those at its end, it starts from; None: the initial weights.
    proposer: the step whose network proposes; None: the network that is trained, if proposals are needed.
    """

    name: str
    learns: tuple[str, ...]
    begins_with: str | None = None
    proposer: str | None = None

    def __str__(self) -> str:
        proposals = "" if self.proposer is None else f" on the proposals of {self.proposer}"
        return f"{self.name}, from {self.begins_with or 'initial weights'}: trains {', '.join(self.learns)}{proposals}"


SCHEMES: dict[str, tuple[Step, ...]] = {
    "joint": (Step("", learns=PARTS),),
    "alternating": (
        Step("1-rpn", learns=("backbone", "rpn")),
        Step("2-detector", learns=("backbone", "roi_heads"), proposer="1-rpn"),  # no layers shared yet
        Step("3-rpn", learns=("rpn",), begins_with="2-detector"),
        Step("4-detector", learns=("roi_heads",), begins_with="3-rpn"),
    ),
    "staged": (
        Step("1-rpn", learns=("backbone", "rpn")),
        Step("2-detector", learns=("roi_heads",), begins_with="1-rpn"),
        Step("3-joint", learns=PARTS, begins_with="2-detector"),
    ),
}


@dataclass(frozen=True)
class SchemeRun:
    """What all steps have in common.

    model: with the initial weights, on the CPU; it is copied, not changed. validate: AP of a detector.
    recall: what to measure where a step trains an RPN alone. settings, frozen_stages: see the tasks.
    options.epochs counts for each step.
    """

    model: FasterRcnn
    samples: Any
    validate: Validate
    recall: Validate
    options: TrainOptions
    settings: TrainSettings
    frozen_stages: int
    folder: Path
    device: torch.device
    notes: dict[str, str]

    def network(self, step: str | None) -> FasterRcnn:
        """A detector with the weights that a step ended with, or the initial ones; on the CPU.

        With --ema they are the average, which is what was validated. It is exact where nothing was trained.

        Raises:
            ArtifactError: the step's last.pt is missing or cannot be used.
        """
        network = copy.deepcopy(self.model)
        if step is not None:
            path = self.folder / step / "last.pt"
            content = read_checkpoint(path)
            averaged = content["training"].get("averaged")
            load_weights(network, averaged["averages"] if averaged else content["model"], path)
        return network


def add_scheme_arguments(group: argparse._ArgumentGroup) -> None:
    """The scheme as options of a command line."""
    group.add_argument(
        "--scheme",
        default="joint",
        choices=list(SCHEMES),
        help="joint; the paper's 4-step alternating training; or staged: RPN, detector, joint (default: %(default)s)",
    )
    group.add_argument(
        "--frozen-stages",
        type=int,
        default=0,
        help="first stages of the backbone that keep their initial weights; the papers: 2 of VGG-16 and of ResNets, "
        "none of ZF-Net (default: %(default)s)",
    )


def check_scheme_folder(folder: Path, scheme: str, resume: bool) -> None:
    """A new run writes over no step of an older one, and an older one goes on by its own scheme.

    Raises:
        UserError: a run is there and `resume` is not given, or it is of another scheme.
        ArtifactError: the last.pt of a step cannot be read.
    """
    check_run_folder(folder, resume)
    for step in SCHEMES[scheme]:
        check_run_folder(folder / step.name, resume)
        path = folder / step.name / "last.pt"
        if step.name and path.is_file():
            earlier = read_checkpoint(path).get("notes", {}).get("scheme")
            if earlier != scheme:
                raise UserError(f"{path} was trained by --scheme {earlier}: give that, or another --output.")


def train_scheme(scheme: str, run: SchemeRun, *, resume: bool) -> float:
    """Train all steps that are not done, and give the best AP of the last one.

    Args:
        resume: go on where the run folder's last.pt files stand; a step is done when it has its epochs.

    Raises:
        ArtifactError: nothing to resume from.
        UserError: more epochs are asked for of a step than the steps behind it began with.
    """
    steps = SCHEMES[scheme]
    notes = {**run.notes, "scheme": scheme}
    for number, step in enumerate(steps, start=1):
        trainer = _step_trainer(step, run, notes)
        if resume:
            if number == 1 or (trainer.folder / "last.pt").is_file():
                trainer.resume()
            _check_order(trainer, steps[number:], run.folder)
        if step.name:
            print(f"step {number} of {len(steps)}, {step}", flush=True)
        trainer.fit()
        if step.name:
            print(f"step {number} of {len(steps)} is done: {trainer.folder}", flush=True)
    if len(steps) > 1 and is_first_process():
        _keep_result(run, steps[-1].name)
    return trainer.best_ap


def _step_trainer(step: Step, run: SchemeRun, notes: dict[str, str]) -> Trainer:
    """A Trainer that is to do the step, in its folder."""
    proposer = None if step.proposer is None else _on_device(run.network(step.proposer), run.device)
    return Trainer(
        model=run.network(step.begins_with),
        spec=run.model.spec,
        samples=run.samples,
        validate=_measure(step, run, proposer),
        options=run.options,
        task=_task(step, run, proposer),
        folder=run.folder / step.name,
        device=run.device,
        notes={**notes, "step": step.name} if step.name else notes,
    )


def _task(step: Step, run: SchemeRun, proposer: FasterRcnn | None) -> Task:
    """What the step minimises: the losses of the heads that learn."""
    if "roi_heads" not in step.learns:
        return RpnTask(run.settings, learns=step.learns, frozen_stages=run.frozen_stages)
    if "rpn" in step.learns:
        return JointTask(run.settings, frozen_stages=run.frozen_stages)
    return DetectorTask(run.settings, proposer=proposer, learns=step.learns, frozen_stages=run.frozen_stages)


def _measure(step: Step, run: SchemeRun, proposer: FasterRcnn | None) -> Validate:
    """AP where the step has a detector, with the proposals it was trained on; else the recall of its proposals."""
    if "roi_heads" not in step.learns:
        return run.recall
    if proposer is None:
        return run.validate
    other = proposer
    return lambda model: run.validate(UnsharedDetector(model, other).eval())


def _check_order(trainer: Trainer, later: Sequence[Step], folder: Path) -> None:
    """No step goes on behind the back of those that began with its weights."""
    begun = [step.name for step in later if (folder / step.name / "last.pt").is_file()]
    if trainer.epoch < trainer.options.epochs and begun:
        as_before = f"give --epochs {trainer.epoch}, or " if trainer.epoch else ""
        raise UserError(
            f"{trainer.folder} has {trainer.epoch} of {trainer.options.epochs} epochs, but {begun[0]} began with its "
            f"weights: {as_before}delete {folder / begun[0]} and what follows."
        )


def _keep_result(run: SchemeRun, last_step: str) -> None:
    """Put the last step's best.pt, and the weights it ended with without the optimizer, into the run folder."""
    folder = run.folder / last_step
    last = read_checkpoint(folder / "last.pt")
    save_checkpoint(run.folder / "last.pt", run.network(last_step), run.model.spec, notes=last["notes"])
    with atomic_output(run.folder / "best.pt") as path:
        path.write_bytes((folder / "best.pt").read_bytes())


def _on_device(network: FasterRcnn, device: torch.device) -> FasterRcnn:
    return network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
