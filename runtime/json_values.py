"""Questions to values from a JSON file that may come from anywhere, and how NaN goes into one."""

from __future__ import annotations

import math
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any


def stays_inside(name: str) -> bool:
    """Whether a file name is relative and never climbs, read by the rules of POSIX and of Windows."""
    for path in (PurePosixPath(name), PureWindowsPath(name)):
        if path.is_absolute() or path.drive or path.root or ".." in path.parts:
            return False
    return "\0" not in name


def is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number; an integer beyond float64 is not."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def nan_as_none(value: Any) -> Any:
    """`value` for a JSON file, which knows no NaN."""
    return None if isinstance(value, float) and math.isnan(value) else value


def kind_of(value: Any) -> str:
    """JSON's word for a value's type."""
    names = {dict: "object", list: "list", str: "text", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")


def shown(value: Any) -> str:
    """A value from the file, short enough for a sentence."""
    try:
        text = repr(value)
    except ValueError:  # an integer too long to print
        text = "a number too large to print"
    return text if len(text) <= 60 else text[:57] + "..."
