"""What plugins/benchmark.py prints and draws."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

BLUE, GREY, INK, FAINT = "#1f6fb4", "#b9c0c7", "#33383d", "#e6e9ec"
HEADER = ("case", "op", "batch", "type", "layout", "µs", "p95", "launches", "MB", "floor µs", "% of floor",
          "torchvision µs", "wall µs", "times", "same")  # fmt: skip
TEXT_COLUMNS = (0, 1, 3, 4)
Row = dict[str, Any]  # see `benchmark.measure`


def table(rows: Sequence[Row]) -> str:
    """One line per measurement; "-" is what a CPU does not have."""
    lines = [HEADER, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]

    def aligned(line: Sequence[str]) -> str:
        cells = zip(line, widths, strict=True)
        padded = [c.ljust(w) if i in TEXT_COLUMNS else c.rjust(w) for i, (c, w) in enumerate(cells)]
        return "  ".join(padded).rstrip()

    return "\n".join([aligned(lines[0]), "  ".join("-" * width for width in widths), *map(aligned, lines[1:])])


def _cells(row: Row) -> tuple[str, ...]:
    floor, ratio = row["floor_us"], row["ratio"]
    return (
        row["case"], row["op"], str(row["batch"]), row["type"], row["layout"], _number(row["median_us"]),
        _number(row["p95_us"]), _number(row["launches"], 0), f"{row['floor_bytes'] / 1e6:.3g}", _number(floor),
        _number(floor and 100 * floor / row["median_us"], 0), _number(row["peer"]["median_us"], 0),
        _number(row["peer"]["wall_us"], 0), _number(ratio), row["peer"]["agreement"],
    )  # fmt: skip


def _number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def draw_chart(path: Path, rows: Sequence[Row], title: str) -> None:
    """A PNG with a panel per case and batch: our time, the floor in it, and torchvision's, on a logarithmic axis.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["case"], row["batch"]), []).append(row)
    columns = min(2, len(groups))
    lines = -(-len(groups) // columns)
    most = max(len(group) for group in groups.values())
    figure = Figure(figsize=(7.5 * columns, lines * (0.42 * most + 1.2) + 0.8), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(lines, columns, squeeze=False).flatten().tolist()
    for panel, ((case, batch), group) in zip(panels, groups.items()):
        _draw_panel(panel, f"{case}, batch {batch}", group)
    for panel in panels[len(groups) :]:
        panel.set_visible(False)
    figure.suptitle(title, fontsize=10)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    write_whole(path, figure.savefig)


def _draw_panel(panel: Any, title: str, rows: Sequence[Row]) -> None:
    names = [f"{row['op']}  {row['type']}{_layout(row)}" for row in rows]
    for place, row in enumerate(rows):
        ours, theirs = row["median_us"], row["peer"]["median_us"]
        panel.barh(place - 0.19, ours, 0.38, color=BLUE, label="EdgeRCNN" if place == 0 else None)
        panel.barh(place + 0.19, theirs, 0.38, color=GREY, label="torchvision" if place == 0 else None)
        if row["floor_us"]:
            floor = "floor: bytes at the bandwidth of a copy" if place == 0 else None
            panel.plot([row["floor_us"]] * 2, [place - 0.38, place], color=INK, linewidth=2, label=floor)
        text = {"textcoords": "offset points", "xytext": (4, 0), "va": "center", "fontsize": 7, "color": INK}
        panel.annotate(f"{ours:.1f}", (ours, place - 0.19), **text)
        times = f", {row['ratio']:.1f} ×" if row["ratio"] else ""
        panel.annotate(f"{theirs:.0f}{times}", (theirs, place + 0.19), **text)
    panel.set_yticks(range(len(rows)), names, fontsize=8)
    panel.invert_yaxis()
    panel.set_xscale("log")
    shown = [time for row in rows for time in (row["median_us"], row["peer"]["median_us"], row["floor_us"]) if time]
    panel.set_xlim(min(shown) / 2, max(shown) * 6)  # bars have no zero to start from; room for the numbers
    panel.set_xlabel("µs, median", color=INK, fontsize=8)
    panel.grid(axis="x", color=FAINT)
    panel.set_axisbelow(True)
    panel.set_title(title, loc="left", fontsize=9)
    panel.tick_params(colors=INK, labelsize=8)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def _layout(row: Row) -> str:
    return "" if row["layout"] == "nchw" else f" {row['layout']}"


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write` with a temporary name beside `path` and rename: the file is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
