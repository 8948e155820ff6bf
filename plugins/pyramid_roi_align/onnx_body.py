"""ONNX face of PyramidRoiAlign: the op in standard operators, no data-dependent shape.

With a fixed number of samples there is no RoiAlign in it, which is slower and which not every runtime has. Adaptive
samples, of which there is no bound, are left to RoiAlign (`adaptive_body`).

Shapes: B images, R rois per image, N = B * R, L levels, C channels, H x W cells of a level, P pooled size,
S = sampling_ratio, G rois pooled at a time. Pairs of axes are (y, x).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from onnx import FunctionProto

from plugins.common.onnx_boxes import without_padding
from plugins.common.onnx_builder import BodyBuilder, Value

ATTRIBUTES = (
    "spatial_scales",
    "output_size",
    "sampling_ratio",
    "aligned",
    "canonical_scale",
    "canonical_level",
)
MOST_DENSE_CELLS = 512  # of all levels together; above, reading only the cells a roi needs is faster on a CPU
MOST_GATHERED_ROIS, MOST_DENSE_ROIS = 8, 16  # G: what is read and made for a group should stay in a cache


class Samples(NamedTuple):
    """Where the rois are sampled; bilinear weights are a product of one per axis, so the axes stay apart."""

    at: Value  # float32 [S, N, 2, P], in cells, moved into the level
    weight: Value  # float32 [S, N, 2, P], 1 / S; 0 outside the level and for padding
    level: Value  # int64 [N]
    image: Value  # int64 [N]
    size: Value  # P, int64 [1]


def function_body(num_levels: int, opset: int = 18, dense: bool = False) -> FunctionProto:
    """The body for nodes with `num_levels` features and a sampling_ratio of 1 or more.

    Args:
        num_levels: L.
        opset: of the model.
        dense: sum over all cells of all levels instead of gathering those that have a weight: right for any features,
            fast for few cells.
    """
    inputs = ["rois", *[f"features_{level}" for level in range(num_levels)]]
    body = BodyBuilder("PyramidRoiAlign", inputs, ["pooled"], ATTRIBUTES)
    features = [body.input(name) for name in inputs[1:]]
    samples = _samples(body, features)
    pooled = (_pool_densely if dense else _pool_by_gathering)(body, features, samples)  # [N / G, G, C, PP]
    pooled = pooled.reshape(-1, features[0].size(1), samples.size, samples.size)
    body.output("pooled", body.op("CastLike", pooled, features[0]))
    return body.build(opset)


def adaptive_body(num_levels: int, opset: int = 18) -> FunctionProto:
    """The body for nodes with `num_levels` features and sampling_ratio 0: ONNX RoiAlign on every level.

    A level sees the rois of other levels as boxes without sides, which have no samples and cost next to nothing.
    """
    inputs = ["rois", *[f"features_{level}" for level in range(num_levels)]]
    body = BodyBuilder("PyramidRoiAlign", inputs, ["pooled"], ATTRIBUTES)
    features, rois = [body.input(name) for name in inputs[1:]], body.input("rois")
    boxes, real = without_padding(body, rois.reshape(-1, 4))  # [N, 4], [N, 1]
    level, scale = _levels(body, boxes)  # [N]
    low, far = (boxes * scale.unsqueeze(1)).split(2, axis=1)  # [N, 2], in cells
    aligned = body.attribute("aligned", "int").cast("float")
    shift = 0.5 - aligned * 0.5  # what half_pixel takes away and an op that is not aligned does not
    sides = body.op("Max", far - low, 1.0 - aligned)  # one cell or more, unless aligned
    cells = body.concat(low + shift, low + shift + sides, axis=1)  # [N, 4]
    image = body.range(boxes.size(0)) / rois.size(1)
    pooled = None
    for index, maps in enumerate(features):
        of_level = level.equal(index).unsqueeze(1) & real  # [N, 1]
        made = body.op(
            "RoiAlign",
            maps.cast("float"),
            body.where(of_level, cells, np.float32(0)),
            image,
            references={"output_height": "output_size", "output_width": "output_size"},
            coordinate_transformation_mode="half_pixel",
            sampling_ratio=0,
            spatial_scale=1.0,
        )
        others = np.float32(0) if pooled is None else pooled
        pooled = body.where(of_level.unsqueeze(2, 3), made, others)  # [N, C, P, P]
    assert pooled is not None, "no levels"
    body.output("pooled", body.op("CastLike", pooled, features[0]))
    return body.build(opset)


def _samples(body: BodyBuilder, features: list[Value]) -> Samples:
    rois = body.input("rois")
    boxes, real = without_padding(body, rois.reshape(-1, 4))  # [N, 4], [N, 1]
    level, scale = _levels(body, boxes)  # [N]
    limits = body.concat(*[body.op("Shape", maps, start=2).unsqueeze(0) for maps in features], axis=0)  # [L, 2]
    limit = limits.cast("float").gather(level).unsqueeze(2)  # [N, 2, 1]

    low, far = (boxes.gather([1, 0, 3, 2], axis=1) * scale.unsqueeze(1)).split(2, axis=1)  # [N, 2]
    aligned = body.attribute("aligned", "int").cast("float")
    start = low - aligned * 0.5
    extent = body.op("Max", (far - aligned * 0.5) - start, 1.0 - aligned)  # one cell or more, unless aligned
    size, ratio = body.attribute("output_size", "int"), body.attribute("sampling_ratio", "int")
    bins, parts = (body.range(count).cast("float") for count in (size, ratio))
    bin_size = (extent / size.cast("float")).unsqueeze(2)  # [N, 2, 1]
    inside_bin = (parts + 0.5).reshape(-1, 1, 1, 1) * bin_size / ratio.cast("float")  # [S, N, 2, 1]
    at = (start.unsqueeze(2) + bins * bin_size) + inside_bin  # [S, N, 2, P]
    counted = (at >= -1.0) & (at <= limit) & real.unsqueeze(2)
    weight = counted.cast("float") / ratio.cast("float")
    at = body.op("Min", body.op("Max", at, 0.0), limit - 1.0)
    return Samples(at, weight, level, body.range(boxes.size(0)) / rois.size(1), size.reshape(1))


def _levels(body: BodyBuilder, boxes: Value) -> tuple[Value, Value]:
    """Level index int64 [N] of `boxes` [N, 4] and its spatial scale [N]: FPN's equation 1."""
    scales = body.attribute("spatial_scales", "floats")
    per_log = float(1 / np.log(2))  # log2(x) = Log(x) * per_log
    finest = body.op("Round", body.op("Log", scales.gather(0)) * -per_log)
    coarsest = body.op("Round", body.op("Log", scales.gather(-1)) * -per_log)
    x1, y1, x2, y2 = boxes.split(4, axis=1)
    sides = body.op("Sqrt", (x2 - x1) * (y2 - y1)).squeeze(1)
    ratio = sides / body.attribute("canonical_scale", "float")
    canonical = body.attribute("canonical_level", "int").cast("float")
    level = body.op("Floor", canonical + body.op("Log", ratio) * per_log + 1e-6)
    level = body.op("Max", body.op("Min", level, coarsest), finest) - finest  # Log(0) of padding goes to the finest
    index = level.cast("int64")
    return index, scales.gather(index)


def _pool_by_gathering(body: BodyBuilder, features: list[Value], samples: Samples) -> Value:
    """Each bin is a sum over 2S x 2S cells: the two rows around each of S samples times the two columns."""
    cells_of_level = [maps.cast("float").reshape(0, 0, -1).transpose(0, 2, 1) for maps in features]  # [B, HW, C]
    cells = body.concat(*cells_of_level, axis=1)  # [B, sum of HW, C]
    heights = body.concat(*[maps.size(2) for maps in features], axis=0)  # [L]
    widths = body.concat(*[maps.size(3) for maps in features], axis=0)
    first_cell = body.op("CumSum", heights * widths, 0, exclusive=1).gather(samples.level)
    first_cell = first_cell + samples.image * cells.size(1)  # [N], of the roi's level and image

    limits = body.concat(heights.unsqueeze(1), widths.unsqueeze(1), axis=1).gather(samples.level)  # [N, 2]
    before = body.op("Floor", samples.at)  # [S, N, 2, P]
    after = body.op("Min", before + 1.0, limits.cast("float").unsqueeze(2) - 1.0)
    fraction = samples.at - before
    weights = body.concat((1.0 - fraction) * samples.weight, fraction * samples.weight, axis=0)  # [2S, N, 2, P]
    weights = weights.transpose(1, 2, 3, 0)  # [N, 2, P, 2S]
    row, column = body.concat(before, after, axis=0).cast("int64").transpose(1, 2, 3, 0).split(2, axis=1)
    row = row * widths.gather(samples.level).reshape(-1, 1, 1, 1) + first_cell.reshape(-1, 1, 1, 1)
    places = row.reshape(0, -1, 1, weights.size(3), 1) + column.unsqueeze(3)  # [N, P, P, 2S, 2S]
    row_weights, column_weights = weights.split(2, axis=1)
    weights = row_weights.reshape(0, -1, 1, weights.size(3), 1) * column_weights.unsqueeze(3)

    flat = _for_scan(body, cells.reshape(-1, cells.size(2)))
    bins, taps = samples.size * samples.size, weights.size(3) * weights.size(4)
    group = body.greatest_divisor(body.input("rois").size(1), MOST_GATHERED_ROIS)

    def pool(places: Value, weights: Value) -> Value:
        return (weights @ flat.gather(places)).squeeze(2).transpose(0, 2, 1)  # [G, PP, 1, C] -> [G, C, PP]

    places = places.reshape(-1, group, bins, taps)
    return body.scan(pool, places, weights.reshape(-1, group, bins, 1, taps), rank=3)[0]


def _pool_densely(body: BodyBuilder, features: list[Value], samples: Samples) -> Value:
    """Two matrix products, over the rows and then over the columns of every level; other levels have no weight."""
    group = body.greatest_divisor(body.input("rois").size(1), MOST_DENSE_ROIS)
    channels = features[0].size(1)
    at_y, at_x = samples.at.split(2, axis=2)  # [S, N, 1, P]
    weight_y, weight_x = samples.weight.split(2, axis=2)
    rows = [
        _for_scan(body, maps.cast("float").transpose(0, 2, 3, 1).reshape(0, 0, -1)) for maps in features
    ]  # [B, H, WC]
    row_weights, column_weights = [], []
    for level, maps in enumerate(features):
        row_weights.append(
            _weights_of_cells(body, at_y, weight_y, maps.size(2)).reshape(-1, group * samples.size, maps.size(2))
        )
        of_level = samples.level.equal(level).cast("float").reshape(-1, 1, 1)
        column_weights.append(_weights_of_cells(body, at_x, weight_x * of_level, maps.size(3)))
    columns = body.concat(*column_weights, axis=3)  # [N, 1, P, sum of W]
    columns = columns.reshape(-1, group, 1, samples.size, columns.size(3))
    images = samples.image.reshape(-1, group).gather(0, axis=1)  # [N / G], R being a multiple of G

    def pool(image: Value, column_weights: Value, *row_weights: Value) -> Value:
        """[], [G, 1, P, sum of W] and, per level, [GP, H] -> [G, C, PP]."""
        lines = [weights @ maps.gather(image) for weights, maps in zip(row_weights, rows, strict=True)]  # [GP, WC]
        lines = [line.reshape(group, samples.size, -1, channels) for line in lines]
        pooled = column_weights @ body.concat(*lines, axis=2)  # [G, P, P, C]
        return pooled.reshape(group, samples.size * samples.size, channels).transpose(0, 2, 1)

    return body.scan(pool, images, columns, *row_weights, rank=3)[0]


def _for_scan(body: BodyBuilder, features: Value) -> Value:
    """`features` behind a Concat of one.

    ONNX Runtime (1.31) moves a quantiser of `features` behind Reshape and Transpose, and aborts if a Scan reads that.
    """
    return body.op("Concat", features, axis=0)


def _weights_of_cells(body: BodyBuilder, at: Value, weight: Value, length: Value) -> Value:
    """Bilinear weight of each of `length` cells for each bin: [S, N, 1, P] twice -> [N, 1, P, length]."""
    distance = body.op("Abs", at.unsqueeze(4) - body.range(length).cast("float"))  # [S, N, 1, P, length]
    return (body.op("Relu", 1.0 - distance) * weight.unsqueeze(4)).reduce("Sum", axis=0)
