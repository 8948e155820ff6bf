"""Whether data have the classes that a checkpoint was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from runtime.errors import UserError


def check_classes(trained: Sequence[str], data: Sequence[str], weights: Path) -> None:
    """The same names in the same order.

    Args:
        trained: the classes of the checkpoint `weights`.
        data: those of the data set.

    Raises:
        UserError: they differ.
    """
    if tuple(trained) != tuple(data):
        raise UserError(
            f"{weights} detects {', '.join(trained[:3])}, ... ({len(trained)}), the data have {', '.join(data[:3])}, "
            f"... ({len(data)}): give --data and --val with its classes, in its order."
        )
