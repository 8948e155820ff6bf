"""What the command lines of all trainings share."""

from __future__ import annotations

import argparse
from pathlib import Path

from training.schedule import add_option_arguments
from training.settings import add_settings_arguments


def add_training_arguments(parser: argparse.ArgumentParser, output: str) -> argparse._ArgumentGroup:
    """The run folder (`output` by default), the options of training and the settings of the losses.

    Returns the group "training", for options of one's own.
    """
    train = parser.add_argument_group("training")
    train.add_argument("--output", type=Path, default=Path(output), help="run folder")
    train.add_argument("--resume", action="store_true", help="go on from the run folder's last.pt")
    add_option_arguments(train)
    add_settings_arguments(parser.add_argument_group("matching, sampling and losses"))
    return train
