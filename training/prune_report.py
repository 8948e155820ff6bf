"""`pruning.json`: what pruning took out of a detector and what it cost.

{"start": how the run began, "network_hw": px, "cpu": threads of PyTorch, "before" and "after": {"parameters", "macs",
"cpu_ms", "ap"}, "fine_tuned_ap": null until training is done}.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from runtime.errors import ArtifactError
from runtime.files import write_json
from runtime.tables import format_table
from training.distributed import is_first_process
from training.prune_cost import Cost

REPORT_NAME = "pruning.json"


@dataclass(frozen=True)
class Stage:
    """A detector before or after pruning: its cost and AP (0..1), before any fine-tuning."""

    parameters: int
    macs: int
    cpu_ms: float
    ap: float


@dataclass(frozen=True)
class PruneReport:
    """The file's content."""

    start: dict[str, Any]
    network_hw: tuple[int, int]
    cpu: str
    before: Stage
    after: Stage
    fine_tuned_ap: float | None

    @classmethod
    def measured(cls, start: dict[str, Any], costs: Sequence[Cost], aps: Sequence[float]) -> PruneReport:
        """Of the costs and APs before and after."""
        before, after = (
            Stage(cost.parameters, cost.macs, round(cost.cpu_ms, 2), round(ap, 4)) for cost, ap in zip(costs, aps)
        )
        return cls(start, costs[0].network_hw, f"{torch.get_num_threads()} threads", before, after, None)

    def fine_tuned(self, ap: float) -> PruneReport:
        """The same, with the AP after training."""
        return dataclasses.replace(self, fine_tuned_ap=round(ap, 4))

    def table(self) -> str:
        """For a terminal."""
        before, after = self.before, self.after
        height, width = self.network_hw
        rows: list[list[str | None]] = [
            ["parameters, million", f"{before.parameters / 1e6:.2f}", f"{after.parameters / 1e6:.2f}"],
            [f"multiply-accumulates at {height}x{width}, 10^9", f"{before.macs / 1e9:.2f}", f"{after.macs / 1e9:.2f}"],
            [f"CPU time, {self.cpu}, ms", f"{before.cpu_ms:.1f}", f"{after.cpu_ms:.1f}"],
            ["AP, not fine-tuned", f"{before.ap:.3f}", f"{after.ap:.3f}"],
        ]
        if self.fine_tuned_ap is not None:
            rows.append(["AP, fine-tuned", None, f"{self.fine_tuned_ap:.3f}"])
        return format_table(["", "before", "pruned"], rows)


def write_report(folder: Path, report: PruneReport) -> None:
    """Write the file into a run folder, whole or not at all; of processes that train together, the first does."""
    if is_first_process():
        write_json(folder / REPORT_NAME, dataclasses.asdict(report), indent=1)


def read_report(folder: Path) -> PruneReport:
    """Read what `write_report` wrote.

    Raises:
        ArtifactError: no such file, or not one of ours.
    """
    path = folder / REPORT_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        height, width = content["network_hw"]
        stages = {name: Stage(**content[name]) for name in ("before", "after")}
        return PruneReport(**{**content, **stages, "network_hw": (height, width)})
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        message = f"{path} cannot be read as the report of a pruning ({error}): give the --output of one, or a new one"
        raise ArtifactError(f"{message} without --resume.") from error
