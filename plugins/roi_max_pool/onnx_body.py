"""ONNX face of RoiMaxPool: the op in standard operators, no MaxRoiPool, no data-dependent shape.

Shapes: B images, R rois per image, N = B * R, C channels, H x W cells, P pooled size, G rois gathered at a time,
E x F window sizes (powers of two) down and across.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from onnx import FunctionProto

from plugins.common.onnx_boxes import without_padding
from plugins.common.onnx_builder import BodyBuilder, Value

ATTRIBUTES = ("output_size", "spatial_scale")
LARGEST_GROUP = 8  # rois gathered at a time


class Bins(NamedTuple):
    """The bins of all rois along one axis, int64 [N, P] but for the last: bin p is covered by windows of one size."""

    level: Value  # log2 of the windows' size
    first: Value  # where the first window starts, cells
    last: Value  # where the last one starts, relative to the first; negative for an empty bin
    step: Value  # the windows' size
    most_windows: Value  # [1], how many the longest bin needs


def function_body(opset: int = 18) -> FunctionProto:
    """The body: a table of the maxima of all windows with sides 1, 2, 4, ...; a bin is the maximum of the few windows
    that cover it, two per axis unless the roi is larger than the features."""
    body = BodyBuilder("RoiMaxPool", ["rois", "features"], ["pooled"], ATTRIBUTES)
    rois, features = body.input("rois"), body.input("features")
    batch, channels, height, width = (features.size(axis) for axis in range(4))
    size = body.attribute("output_size", "int").reshape(1)
    across = _doublings(body, features.cast("float").transpose(0, 2, 3, 1), 2, width / size)  # [F, B, H, W, C]
    table = _doublings(body, across, 2, height / size)  # [E, F, B, H, W, C]

    boxes, real = without_padding(body, rois.reshape(-1, 4))  # [N, 4], [N, 1]
    x1, y1, x2, y2 = _round(body, boxes * body.attribute("spatial_scale", "float")).split(4, axis=1)  # [N, 1]
    down = _bins(body, y1, y2, height, table.size(0))
    along = _bins(body, x1, x2, width, across.size(0))

    image = (body.range(boxes.size(0)) / rois.size(1)).reshape(-1, 1, 1)  # [N, 1, 1]
    level = down.level.unsqueeze(2) * across.size(0) + along.level.unsqueeze(1)  # [N, P, P]
    corner = ((level * batch + image) * height + down.first.unsqueeze(2)) * width + along.first.unsqueeze(1)
    filled = (down.last.unsqueeze(2) >= 0) & (along.last.unsqueeze(1) >= 0) & real.unsqueeze(2)
    rows = table.reshape(-1, channels)
    num_windows = down.most_windows * along.most_windows
    group = body.greatest_divisor(rois.size(1), LARGEST_GROUP)

    def pool(corner: Value, filled: Value, last_y: Value, step_y: Value, last_x: Value, step_x: Value) -> Value:
        """A group of rois, [G, P, P] and [G, P] each -> [G, C, PP]."""

        def cover(trip: Value, most: Value) -> tuple[Value, Value]:
            y = body.op("Min", trip / along.most_windows * step_y, last_y) * width
            x = body.op("Min", trip % along.most_windows * step_x, last_x)
            place = body.where(filled, corner + y.unsqueeze(2) + x.unsqueeze(1), 0)
            return (trip + 1 < num_windows).squeeze(), body.op("Max", most, rows.gather(place))

        least = body.op("Expand", np.float32(-np.inf), body.concat(group, size, size, channels, axis=0))
        (most,) = body.loop_while(cover, num_windows, least)  # [G, P, P, C]
        return body.where(filled.unsqueeze(3), most, np.float32(0)).reshape(0, -1, channels).transpose(0, 2, 1)

    planes = [value.reshape(-1, group, size, size) for value in (corner, filled)]
    lines = [value.reshape(-1, group, size) for value in (down.last, down.step, along.last, along.step)]
    (pooled,) = body.scan(pool, *planes, *lines, rank=3)
    body.output("pooled", body.op("CastLike", pooled.reshape(-1, channels, size, size), features))
    return body.build(opset)


def _doublings(body: BodyBuilder, cells: Value, axis: int, longest: Value) -> Value:
    """Maxima of windows of 1, 2, 4, ... cells from each cell on along `axis`, cut at the border, stacked in front.

    `longest` [1] is the length of the bins of the largest roi in the features but for rounding, which adds up to two.
    """
    length = cells.size(axis)
    levels = body.op("Floor", _log2(body, (longest + 2).cast("float"))).cast("int64") + 1

    def double(_: Value, most: Value, shift: Value) -> tuple[Value, ...]:
        shifted = most.gather(body.op("Min", body.range(length) + shift, length - 1), axis=axis)
        return body.op("Max", most, shifted), shift * 2, most

    return body.loop(double, levels, cells, body.value([1]))[-1]


def _bins(body: BodyBuilder, start: Value, stop: Value, length: Value, num_levels: Value) -> Bins:
    """The bins of rois that reach from cell `start` to cell `stop`, float32 [N, 1], on an axis of `length` cells."""
    size = body.attribute("output_size", "int")
    number = body.range(size).cast("float")  # [P]
    bin_size = body.op("Max", stop - start + 1.0, 1.0) / size.cast("float")  # [N, 1]
    limit = length.cast("float")
    first = _between(body, body.op("Floor", number * bin_size) + start, limit)  # [N, P]
    extent = _between(body, body.op("Ceil", (number + 1.0) * bin_size) + start, limit) - first
    level = body.op("Floor", _log2(body, body.op("Max", extent, 1.0))).cast("int64")
    level = body.op("Min", level, num_levels - 1)
    step = body.value(2 ** np.arange(32)).gather(level)
    extent = extent.cast("int64")
    count = body.op("Max", ((extent + step - 1) / step).reduce("Max").reshape(1), 1)
    return Bins(level, first.cast("int64"), extent - step, step, count)


def _between(body: BodyBuilder, value: Value, limit: Value) -> Value:
    return body.op("Min", body.op("Max", value, 0.0), limit)


def _log2(body: BodyBuilder, value: Value) -> Value:
    """Base-two logarithm of whole numbers up to 2^20, a little too large so that Floor is right at powers of two."""
    return body.op("Log", value) * float(1 / np.log(2)) + 1e-6


def _round(body: BodyBuilder, value: Value) -> Value:
    """C's round: half away from zero (ONNX Round goes to even)."""
    size = body.op("Abs", value)
    whole = body.op("Floor", size)
    return body.op("Sign", value) * (whole + (size - whole >= 0.5).cast("float"))
