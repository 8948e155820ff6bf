"""Where a run stands, out of the `last.pt` that it wrote, and whether another run may go on from there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runtime.errors import ArtifactError, UserError
from runtime.spec import DetectorSpec
from training.checkpoint import read_checkpoint
from training.schedule import TrainOptions, begin_momentum


def read_position(path: Path, spec: DetectorSpec) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
    """The weights and the training position.

    Raises:
        ArtifactError: no such file, not a training checkpoint, or of another spec.
    """
    content = read_checkpoint(path)
    state = content.get("training")
    if not isinstance(state, dict):
        raise ArtifactError(f"{path} holds no training position: resume from a last.pt that training wrote.")
    if content["digest"] != spec.digest():
        raise ArtifactError(
            f"{path} was trained with another spec: give the same --architecture and data, or a new --output."
        )
    return content["model"], state


def own_position(state: Mapping[str, Any], key: str, folder: Path, lacking: str) -> dict[str, Any]:
    """What a trainer of a kind of its own added to the position; `lacking` says what a run without it is.

    Raises:
        UserError: it is the position of another kind of run.
    """
    own = state.get(key)
    if not isinstance(own, dict):
        raise UserError(f"{folder} holds {lacking}: give another run's --output.")
    return own


def check_start(earlier: object, now: object, folder: Path, what: str, options: str) -> None:
    """A run goes on as it began: with what, and which options decide it.

    Raises:
        UserError: it began otherwise.
    """
    if earlier != now:
        raise UserError(f"{folder} began with {what}: resume with the same {options}, or give a new --output.")


def fixed_options(options: TrainOptions, steps_per_epoch: int) -> dict[str, Any]:
    """What a position depends on; it is kept in it."""
    return {"optimizer": options.optimizer, "steps_per_epoch": steps_per_epoch}


def check_fixed_options(state: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Raises UserError where `now`, of fixed_options, does not fit the position; older files do not say theirs."""
    earlier = state.get("options", now)
    if earlier["optimizer"] != now["optimizer"]:
        raise UserError(
            f"{folder} was trained with --optimizer {earlier['optimizer']}: give the same, or a new --output."
        )
    if earlier["steps_per_epoch"] != now["steps_per_epoch"] and state["step"]:
        raise UserError(
            f"{folder} stopped within an epoch of {earlier['steps_per_epoch']} steps, and now there are "
            f"{now['steps_per_epoch']}: give the same data and --batch-size."
        )


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Momenta and the like from `state`; weight decay and other options stay as they were asked for now.

    Raises:
        UserError: the state is of other parameters than those that learn now.
    """
    sizes = [[len(group["params"]) for group in groups] for groups in (state["param_groups"], optimizer.param_groups)]
    if sizes[0] != sizes[1]:
        raise UserError(
            f"the run trained {sum(sizes[0])} parameters, and now {sum(sizes[1])} are to learn: resume with the same "
            "--frozen-stages, or give a new --output."
        )
    asked = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    groups = [
        {**options, "params": group["params"]} for group, options in zip(state["param_groups"], asked, strict=True)
    ]
    optimizer.load_state_dict({**state, "param_groups": groups})
    begin_momentum(optimizer)  # of a run that had none
