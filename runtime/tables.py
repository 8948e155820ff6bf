"""Plain text tables for terminals and log files."""

from __future__ import annotations

from collections.abc import Sequence


def format_table(header: Sequence[str], rows: Sequence[Sequence[object]], *, text_columns: int = 1) -> str:
    """A table with a rule under its header; the first `text_columns` columns are flush left, the rest flush right.

    `None` and NaN are shown as "-"; other cells as `str` gives them, so format numbers before.

    Raises:
        ValueError: a row whose length is not the header's.
    """
    lines = [[_cell(value) for value in row] for row in (header, *rows)]
    for line in lines:
        if len(line) != len(header):
            raise ValueError(f"a row has {len(line)} cells, the header {len(header)}: {line}")
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    padded = [
        "  ".join(
            cell.ljust(width) if column < text_columns else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths))
        ).rstrip()
        for line in lines
    ]
    rule = "  ".join("-" * width for width in widths)
    return "\n".join([padded[0], rule, *padded[1:]])


def _cell(value: object) -> str:
    missing = value is None or (isinstance(value, float) and value != value)
    return "-" if missing else str(value)
