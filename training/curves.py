"""The picture beside a run's numbers: losses and AP over the epochs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure  # without pyplot: off screen, no global state
from matplotlib.ticker import MaxNLocator

from runtime.files import atomic_output

LOSSES = ("loss", "rpn_objectness", "rpn_box", "detector_class", "detector_box")
SCORES = ("ap", "ap50", "ap75", "recall", "average_recall")


def write_history(folder: Path, history: Sequence[Mapping[str, float]]) -> None:
    """`metrics.jsonl`, a row for each epoch, and `curves.png` of the same numbers.

    Raises:
        OutputError: the folder cannot be written.
    """
    with atomic_output(folder / "metrics.jsonl") as path:
        path.write_text("".join(json.dumps(row) + "\n" for row in history), encoding="utf-8")
    write_curves(folder / "curves.png", history)


def write_curves(path: Path, history: Sequence[Mapping[str, float]]) -> None:
    """A PNG with two panels, losses (logarithmic) and what validation measured, from the rows of `metrics.jsonl`.

    Raises:
        OutputError: the path cannot be written.
    """
    figure = Figure(figsize=(9, 3.6), dpi=110, layout="constrained")
    losses, scores = figure.subplots(1, 2)
    for panel, names in ((losses, LOSSES), (scores, SCORES)):
        for name in names:
            rows = [row for row in history if name in row]  # AP is not measured in every epoch
            if rows:
                epochs, values = [row["epoch"] for row in rows], [row[name] for row in rows]
                panel.plot(epochs, values, marker="o", markersize=3, label=name)
        panel.set_xlabel("epoch")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(alpha=0.3)
        if panel.lines:
            panel.legend(fontsize=8)
    losses.set_yscale("log")
    losses.set_title("training losses")
    scores.set_ylim(0, 1)
    score = next((name for name in SCORES if any(name in row for row in history)), None)
    best = "" if score is None else f", best {score.upper()} {max(row.get(score, 0.0) for row in history):.3f}"
    scores.set_title(f"validation{best}")
    with atomic_output(path) as temporary:
        figure.savefig(temporary)
