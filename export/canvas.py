"""The fixed canvas of an exported graph: which sizes are good, and what is written into the spec.

The canvas is the network's input, H x W px. `runtime/preprocess.py` scales each frame by min_size and max_size, shrinks
it further when it does not fit, and puts it at the top left.
"""

from __future__ import annotations

import dataclasses
import math
import re

from runtime.errors import UserError
from runtime.preprocess import network_size
from runtime.spec import DetectorSpec, InputSpec

Size = tuple[int, int]  # height, width


def parse_size(text: str | None) -> Size | None:
    """`288x384` -> (288, 384); None stays None.

    Raises:
        UserError: another form.
    """
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d{1,5})\s*[xX×]\s*(\d{1,5})\s*", text)
    if not match:
        raise UserError(f"--size is {text!r}: expected height x width, for example 288x384; correct it.")
    return int(match[1]), int(match[2])


def choose_canvas(spec: InputSpec, size: Size | None) -> Size:
    """The canvas for `size`, or by default the spec's own, else min_size x max_size rounded up: landscape frames.

    Raises:
        UserError: a side that is no multiple of the divisor, or larger than any frame becomes; names good sizes.
    """
    if size is None:
        if spec.height is not None and spec.width is not None:
            return spec.height, spec.width
        return _rounded_up(spec.min_size, spec), _rounded_up(spec.max_size, spec)
    largest = _rounded_up(spec.max_size, spec)
    if any(side % spec.divisor or side == 0 for side in size):
        sides = [_near(side, spec.divisor, largest) for side in size]
        good = sorted({f"{height}x{width}" for height in sides[0] for width in sides[1]}, key=_sides)
        raise UserError(
            f"--size is {size[0]}x{size[1]}: expected multiples of {spec.divisor}; the nearest are {', '.join(good)}."
        )
    if max(size) > largest:
        fitting = "x".join(str(min(side, largest)) for side in size)
        raise UserError(
            f"--size is {size[0]}x{size[1]}: this model scales frames to at most {spec.max_size} px, so the rest would "
            f"stay empty; give {fitting} or less."
        )
    return size


def spec_with_canvas(spec: DetectorSpec, size: Size) -> DetectorSpec:
    """The spec of the exported graph: the canvas is fixed, and `parent_digest` names the checkpoint's spec."""
    height, width = size
    return spec.replace(input=dataclasses.replace(spec.input, height=height, width=width), parent_digest=spec.digest())


def fit_notes(spec: DetectorSpec) -> list[str]:
    """How well common video fills the canvas of `spec`, and a better size where it leaves some of it empty."""
    canvas = (spec.input.height or 0, spec.input.width or 0)
    notes = []
    for name, frame in (("16:9", (1080, 1920)), ("4:3", (1200, 1600))):
        height, width = network_size(frame, spec)
        share = height * width / (canvas[0] * canvas[1])
        better = _rounded_up(height, spec.input), _rounded_up(width, spec.input)
        advice = "" if better == canvas else f" ({better[0]}x{better[1]} would suit it)"
        notes.append(f"{name} video fills {share:.0%}{advice}")
    return notes


def _rounded_up(side: float, spec: InputSpec) -> int:
    return math.ceil(side / spec.divisor) * spec.divisor


def _near(side: int, divisor: int, largest: int) -> set[int]:
    below = side // divisor * divisor
    above = below if below == side else below + divisor
    return {min(max(value, divisor), largest) for value in (below, above)}


def _sides(text: str) -> Size:
    height, width = text.split("x")
    return int(height), int(width)
