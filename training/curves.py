"""The picture beside a run's numbers: losses and AP over the epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure  # without pyplot: off screen, no global state

from runtime.files import atomic_output

LOSSES = ("loss", "rpn_objectness", "rpn_box", "detector_class", "detector_box")
SCORES = ("ap", "ap50", "ap75")


def write_curves(path: Path, history: Sequence[Mapping[str, float]]) -> None:
    """A PNG with two panels, losses (logarithmic) and COCO AP, from the rows of `metrics.jsonl`.

    Raises:
        OutputError: the path cannot be written.
    """
    epochs = [row["epoch"] for row in history]
    figure = Figure(figsize=(9, 3.6), dpi=110, layout="constrained")
    losses, scores = figure.subplots(1, 2)
    for panel, names in ((losses, LOSSES), (scores, SCORES)):
        for name in names:
            if all(name in row for row in history):
                panel.plot(epochs, [row[name] for row in history], marker="o", markersize=3, label=name)
        panel.set_xlabel("epoch")
        panel.set_xticks(epochs if len(epochs) <= 12 else epochs[:: len(epochs) // 12 + 1])
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    losses.set_yscale("log")
    losses.set_title("training losses")
    scores.set_ylim(0, 1)
    scores.set_title(f"validation, best AP {max(row['ap'] for row in history):.3f}")
    with atomic_output(path) as temporary:
        figure.savefig(temporary)
