"""ONNX face of RpnProposals: the op in standard operators, no NonMaxSuppression, no data-dependent shape.

Shapes: B images, L levels, A anchors per cell, H x W cells of a level, N <= pre_nms_top_n candidates per level,
R = post_nms_top_n rois; NMS goes through the N candidates in blocks of T.
"""

from __future__ import annotations

import numpy as np
from onnx import FunctionProto

from plugins.common.onnx_boxes import AWAY, Columns, clip_boxes, decode_boxes, keep_greedily, large_boxes
from plugins.common.onnx_builder import BodyBuilder, Value

ATTRIBUTES = (
    "base_anchors",
    "strides",
    "pre_nms_top_n",
    "post_nms_top_n",
    "nms_threshold",
    "score_threshold",
    "min_size",
    "box_coder_weights",
    "box_clip",
)
BLOCK = 128  # the most candidates NMS settles at a time: its matrices should stay in a cache
NEVER = np.float32(-np.inf)  # logit of what is no candidate
LOWEST = np.finfo(np.float32).min  # logit of the least candidate


def function_body(num_levels: int, opset: int = 18) -> FunctionProto:
    """The body for nodes with `num_levels` objectness and `num_levels` bbox_deltas inputs."""
    inputs = ["im_info"]
    inputs += [f"{kind}_{level}" for kind in ("objectness", "bbox_deltas") for level in range(num_levels)]
    body = BodyBuilder("RpnProposals", inputs, ["rois", "num_rois"], ATTRIBUTES)
    im_info = body.input("im_info")
    objectness = [body.input(f"objectness_{level}") for level in range(num_levels)]
    bbox_deltas = [body.input(f"bbox_deltas_{level}") for level in range(num_levels)]

    logits, index = _best_of_each_level(body, objectness)  # [B, L, N]
    anchors, deltas = _anchors_and_deltas(body, index, objectness, bbox_deltas)  # [B, L, N, 4]
    weights, clip = body.attribute("box_coder_weights", "floats"), body.attribute("box_clip", "float")
    boxes = clip_boxes(decode_boxes(body, deltas, anchors, weights, clip), im_info, -1, 1, 1)
    scored = body.op("Sigmoid", logits) >= body.attribute("score_threshold", "float")
    valid = scored & (logits > NEVER) & large_boxes(boxes, body.attribute("min_size", "float")).squeeze(-1)
    boxes = body.where(valid.unsqueeze(-1), boxes, AWAY)
    kept = _nms_within_levels(body, boxes) & valid
    _write_best(body, boxes, body.where(kept, logits, NEVER))
    return body.build(opset)


def _best_of_each_level(body: BodyBuilder, objectness: list[Value]) -> tuple[Value, Value]:
    """Logits and (h, w, a) indices of the best N anchors per level, [B, L, N]; logit NEVER where there are fewer."""
    sizes = [maps.size(1) * maps.size(2) * maps.size(3) for maps in objectness]
    largest = sizes[0] if len(sizes) == 1 else body.op("Max", *sizes)
    count = body.op("Min", body.attribute("pre_nms_top_n", "int").reshape(1), largest)
    logits, indices = [], []
    for maps, size in zip(objectness, sizes, strict=True):
        ranked = maps.cast("float").transpose(0, 2, 3, 1).reshape(0, -1)  # [B, A, H, W] -> [B, HWA]
        ranked = body.where(body.op("IsNaN", ranked), NEVER, body.op("Max", ranked, LOWEST))
        filler = body.op("Expand", NEVER, body.concat(maps.size(0), count, axis=0))  # [B, N]
        best, index = body.ops("TopK", body.concat(ranked, filler, axis=1), count, outputs=2)
        logits.append(best.unsqueeze(1))
        indices.append(body.op("Min", index.unsqueeze(1), size - 1))
    return body.concat(*logits, axis=1), body.concat(*indices, axis=1)


def _anchors_and_deltas(
    body: BodyBuilder, index: Value, objectness: list[Value], bbox_deltas: list[Value]
) -> tuple[Value, Value]:
    """Anchors and deltas [B, L, N, 4] at `index` [B, L, N]; deltas are read where they lie, [A, 4, HW] per level."""
    num_levels, num_anchors = len(objectness), objectness[0].size(1)
    widths = body.concat(*[maps.size(3) for maps in objectness], axis=0).reshape(-1, 1)  # [L, 1]
    cells = body.concat(*[maps.size(2) for maps in objectness], axis=0).reshape(-1, 1) * widths
    levels = np.arange(num_levels).reshape(-1, 1)

    cell = index / num_anchors
    anchor = index - cell * num_anchors
    row = cell / widths
    column = cell - row * widths
    strides = body.attribute("strides", "ints").reshape(num_levels, 1, 2)  # (y, x)
    shift = body.concat(column.unsqueeze(-1), row.unsqueeze(-1), axis=-1) * strides.gather([1, 0], axis=2)
    base = body.attribute("base_anchors", "floats").reshape(-1, 4).gather(anchor + levels * num_anchors)
    shift = shift.cast("float")
    anchors = body.concat(shift, shift, axis=-1) + base

    flat = body.concat(*[deltas.reshape(0, -1) for deltas in bbox_deltas], axis=1)  # [B, sum of 4A HW]
    sizes = cells * num_anchors * 4
    level_start = body.op("CumSum", sizes, 0, exclusive=1)  # [L, 1]
    image_start = (body.range(flat.size(0)) * flat.size(1)).reshape(-1, 1, 1)  # [B, 1, 1]
    first = anchor * (cells * 4) + cell + level_start + image_start  # [B, L, N]
    places = first.unsqueeze(-1) + (cells * np.arange(4).reshape(1, 4)).unsqueeze(1)
    return anchors, flat.reshape(-1).gather(places).cast("float")


def _nms_within_levels(body: BodyBuilder, boxes: Value) -> Value:
    """Which `boxes` [B, L, N, 4], in descending priority, greedy NMS keeps within each level, bool [B, L, N].

    A loop over blocks of T boxes: settle the block, then strike out what its kept boxes suppress in all later blocks.
    """
    threshold = body.attribute("nms_threshold", "float")
    count = boxes.size(2)
    num_blocks = (count + (BLOCK - 1)) / BLOCK
    block = (count + num_blocks - 1) / num_blocks  # T
    filler = body.op("Expand", AWAY, body.concat(boxes.size(0), boxes.size(1), num_blocks * block - count, [4], axis=0))
    padded = body.concat(boxes, filler, axis=2)
    blocks = padded.reshape(-1, num_blocks, block, 4)  # [BL, blocks, T, 4]
    columns = Columns(body, padded.reshape(-1, num_blocks * block, 4))
    rank = body.range(block)
    later = rank.unsqueeze(1) < rank  # [T, T]
    free = body.op("Expand", np.float32(1), body.concat(blocks.size(0), num_blocks, block, axis=0))

    def step(trip: Value, free: Value) -> tuple[Value, ...]:
        iou = columns.iou(blocks.gather(trip, axis=1))  # [BL, T, N]
        among_block = iou.reshape(0, 0, num_blocks, block).gather(trip, axis=2)  # [BL, T, T]
        suppresses = ((among_block > threshold) & later).cast("float")
        kept = keep_greedily(body, free.gather(trip, axis=1).unsqueeze(1), suppresses)  # [BL, 1, T]
        worst = (iou * kept.transpose(0, 2, 1)).reduce("Max", axis=1)  # [BL, N]
        survives = (worst <= threshold).cast("float").reshape(0, num_blocks, block)
        return free * survives, kept.squeeze(1)

    _, kept = body.loop(step, num_blocks, free)  # [blocks, BL, T]
    kept = kept.transpose(1, 0, 2).reshape(boxes.size(0), boxes.size(1), -1)
    return kept.slice(0, count, axis=2) > 0.0


def _write_best(body: BodyBuilder, boxes: Value, logits: Value) -> None:
    """The best R of `boxes` [B, L, N, 4] by `logits` [B, L, N], zero padded."""
    count = body.attribute("post_nms_top_n", "int").reshape(1)
    filler = body.op("Expand", NEVER, body.concat(boxes.size(0), count, axis=0))  # [B, R]
    ranked = body.concat(logits.reshape(0, -1), filler, axis=1)
    best, index = body.ops("TopK", ranked, count, outputs=2)  # [B, R]
    total = logits.size(1) * logits.size(2)
    image_start = (body.range(boxes.size(0)) * total).unsqueeze(1)
    rois = boxes.reshape(-1, 4).gather(index.at_most(total - 1) + image_start)
    found = best > NEVER
    body.output("rois", body.where(found.unsqueeze(-1), rois, np.float32(0)))
    body.output("num_rois", found.cast("int32").reduce("Sum", axis=1))
