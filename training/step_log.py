"""What each step measured, kept on the device until it is read: reading makes the CPU wait for the GPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from runtime.errors import RunError

READ_EVERY = {"cuda": 10, "cpu": 1}  # steps; a CPU has nothing to wait for
LONGEST_SKIP = 30  # steps in a row that float16's overflow may cost: the scale has fallen by 2 ** 30 then
Row = dict[str, float]


class StepLog:
    """Losses and gradient norm of steps, checked when they are read.

    Args:
        device: where the numbers come from.
        may_skip: whether steps with a gradient that is not finite were left out, as GradScaler does.

    Attributes:
        skipped: how many steps were, over the whole run.
    """

    def __init__(self, device: torch.device, may_skip: bool) -> None:
        self.read_every = READ_EVERY[device.type]
        self.may_skip = may_skip
        self.skipped = 0
        self.skipped_in_a_row = 0
        self.waiting: list[tuple[int, Sequence[str], Tensor]] = []

    def add(self, step: int, names: Sequence[str], values: Tensor) -> None:
        """`values` float32 [N], the last one the gradient's norm, on the device."""
        self.waiting.append((step, names, values))

    @property
    def is_due(self) -> bool:
        """Whether it is time to read."""
        return len(self.waiting) >= self.read_every

    def read(self) -> list[tuple[int, Row]]:
        """The steps since the last reading, oldest first: (step, {name: value}).

        Raises:
            RunError: a loss is not finite, or a gradient where no step may be skipped, or too many in a row.
        """
        waiting, self.waiting = self.waiting, []
        if not waiting:
            return []
        numbers = torch.stack([values for _, _, values in waiting]).tolist()
        rows = [(step, dict(zip(names, row, strict=True))) for (step, names, _), row in zip(waiting, numbers)]
        for step, row in rows:
            self._check(step, row)
        return rows

    def _check(self, step: int, row: Row) -> None:
        *losses, norm = row.items()
        bad = [name for name, value in losses if not _is_finite(value)]
        if bad:
            parts = ", ".join(f"{name} {value:.3g}" for name, value in losses)
            raise RunError(f"the loss is not finite at step {step} ({parts}); lower --learning-rate and --resume.")
        is_skipped = not _is_finite(norm[1])
        self.skipped += is_skipped
        self.skipped_in_a_row = (self.skipped_in_a_row + 1) * is_skipped
        if is_skipped and (not self.may_skip or self.skipped_in_a_row > LONGEST_SKIP):
            raise RunError(
                f"the gradient is not finite at step {step}; lower --learning-rate, or give another --precision, "
                "and --resume."
            )


def _is_finite(value: float) -> bool:
    return abs(value) < float("inf")
