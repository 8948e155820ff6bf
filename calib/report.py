"""What calibration found, for people: a table, a picture and a JSON file."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from calib.convert import FP16, FP32, INT8
from calib.cost import BYTES, Cost, Device, mix_seconds
from calib.harm import Harm, points
from calib.sensitivity import Job
from runtime.plots import INK, save_figure, subplots
from runtime.tables import format_table

COLORS = {INT8: "#1f6fb4", FP16: "#8fc1e8", FP32: "#e07b00"}
MOST_ROWS = 25  # of the table on the terminal; the JSON file has all
BAR = 0.19  # inches per group in the picture


def sensitivity_rows(
    harms: Mapping[str, Harm], ranked: Sequence[tuple[str, float]], costs: Mapping[str, Cost], job: Job, device: Device
) -> list[dict[str, Any]]:
    """One mapping per group, the worst first."""
    return [
        {
            "group": name,
            "harm_per_us": rate,
            "macs": costs[name].macs,
            "saved_us": 1e6 * (costs[name].seconds(job.fallback, device) - costs[name].seconds(job.lowest, device)),
            **dataclasses.asdict(harms[name]),
        }
        for name, rate in ranked
    ]


def sensitivity_table(rows: Sequence[Mapping[str, Any]], assignment: Mapping[str, str]) -> str:
    """The worst groups, for the terminal."""
    header = ("group", "becomes", "harm %", "dAP", "missed", "extra", "mean IoU", "|dscore|", "MMAC", "saves us")
    lines = [
        (
            row["group"],
            assignment[row["group"]],
            f"{100 * row['disagreement']:.2f}",
            points(row["ap_drop"]),
            row["missed"],
            row["extra"],
            f"{row['iou']:.4f}",
            f"{row['score_difference']:.4f}",
            f"{row['macs'] / 1e6:.0f}",
            f"{row['saved_us']:.1f}",
        )
        for row in rows[:MOST_ROWS]
    ]
    more = f"\n... and {len(rows) - MOST_ROWS} more that harm less" if len(rows) > MOST_ROWS else ""
    return format_table(header, lines, text_columns=2) + more


def time_sentence(costs: Mapping[str, Cost], assignment: Mapping[str, str], device: Device) -> str:
    """Estimated time of the mix beside those of one precision throughout."""
    mixed = 1e3 * mix_seconds(costs, assignment, device)
    single = [
        f"{precision.upper()} {1e3 * mix_seconds(costs, dict.fromkeys(costs, precision), device):.2f}"
        for precision in BYTES
    ]
    return f"{mixed:.2f} ms for these layers on {device.name} (all {', '.join(single)}): an estimate that ranks mixes"


def counted(assignment: Mapping[str, str]) -> str:
    """`40 groups int8, 8 fp16`."""
    counts = Counter(assignment.values())
    return ", ".join(f"{counts[kind]} {kind}" for kind in (INT8, FP16, FP32) if counts[kind])


def write_sensitivity_picture(path: Path, harms: Mapping[str, Harm], assignment: Mapping[str, str], title: str) -> None:
    """A PNG with a bar per group in data-flow order: the disagreement that it alone makes.

    Raises:
        BackendUnavailableError: matplotlib is not installed.
        OutputError: the path cannot be written.
    """
    figure, grid = subplots(1, 1, (9.0, BAR * len(harms) + 1.6))
    axis = grid[0, 0]
    shown: set[str] = set()
    for position, (name, harm) in enumerate(harms.items()):
        kind = assignment[name]
        label = None if kind in shown else kind
        axis.barh(position, 100 * harm.disagreement, color=COLORS[kind], height=0.72, label=label)
        shown.add(kind)
    axis.set_yticks(range(len(harms)), list(harms), fontsize=6.5)
    axis.set_ylim(len(harms) - 0.4, -0.6)
    axis.set_xlabel("disagreement with FP32 when this group alone is lowered, %", color=INK)
    axis.grid(axis="x", color="#e6e9ec")
    axis.set_axisbelow(True)
    axis.set_title(title, loc="left", fontsize=10)
    axis.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False, fontsize=9)
    save_figure(figure, path)
