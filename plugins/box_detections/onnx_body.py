"""ONNX face of BoxDetections: the op in standard operators, no NonMaxSuppression, no data-dependent shape.

Shapes: B images, R rois per image, K foreground classes, D = max_detections, G = K + 1 or 1 boxes per roi,
T candidates settled at a time.
"""

from __future__ import annotations

import numpy as np
from onnx import FunctionProto

from plugins.common.onnx_boxes import AWAY, Columns, clip_boxes, decode_boxes, keep_greedily, large_boxes
from plugins.common.onnx_builder import BodyBuilder, Value

INPUTS = ("rois", "num_rois", "class_logits", "bbox_deltas", "im_info")
OUTPUTS = ("num_detections", "detection_boxes", "detection_scores", "detection_classes")
ATTRIBUTES = (
    "score_threshold",
    "nms_threshold",
    "max_detections",
    "min_size",
    "box_coder_weights",
    "box_clip",
)
BLOCK = 128  # T: most images have no more scores above their threshold
NEVER = np.float32(-1)  # score of what is no candidate


def function_body(opset: int = 18) -> FunctionProto:
    """The body: take the T best candidates, settle them against each other and those kept before, until D are kept or
    no score is above the threshold. Exact whatever the number of candidates."""
    body = BodyBuilder("BoxDetections", INPUTS, OUTPUTS, ATTRIBUTES)
    scores = _foreground_scores(body)  # [B, RK]
    slots = body.range(body.attribute("max_detections", "int")).cast("float")  # [D]
    image_slots = body.concat(scores.size(0), slots.size(0), axis=0)
    kept = body.op("Expand", np.float32(0), body.concat(image_slots, [6], axis=0))  # [B, D, 6]
    count = body.op("Expand", np.float32(0), body.concat(scores.size(0), [1], axis=0))  # [B, 1]
    num_scores = body.input("rois").size(1) * (body.input("class_logits").size(1) - 1)
    block = body.op("Min", num_scores, [BLOCK])
    # a kept box comes before all candidates, a candidate before the later ones
    before = body.range(slots.size(0) + block).unsqueeze(1) < (body.range(block) + slots.size(0))  # [D + T, T]

    def step(_: Value, scores: Value, kept: Value, count: Value) -> tuple[Value, ...]:
        best, index = body.ops("TopK", scores, block, outputs=2)  # [B, T]
        taken = body.op("Expand", NEVER, body.op("Shape", index))
        scores = body.op("ScatterElements", scores, index, taken, axis=1)
        candidates, valid = _candidates(body, best, index)  # [B, T, 6], [B, T, 1]
        stays = _stays(body, candidates, valid, kept, before)  # [B, 1, T]
        slot = body.op("CumSum", stays, 2) + (count.unsqueeze(2) - 1.0)  # [B, 1, T]
        placed = (slot.equal(slots.unsqueeze(1)) & (stays > 0.0)).cast("float")  # [B, D, T]
        kept = kept + placed @ candidates
        count = count + stays.reduce("Sum", axis=2)
        more = (count < slots.size(0).cast("float")) & (best.slice(-1, 2**31, axis=1) > NEVER)  # [B, 1]
        return more.cast("float").reduce("Max") > 0.0, scores, kept, count

    trips = (num_scores + (BLOCK - 1)) / BLOCK
    _, kept, count = body.loop_while(step, trips, scores, kept, count)
    _write_detections(body, kept, count, slots)
    return body.build(opset)


def _foreground_scores(body: BodyBuilder) -> Value:
    """Scores [B, RK] in the order roi * K + class; NEVER where not above the threshold or the roi is padding."""
    rois = body.input("rois")
    scores = body.op("Softmax", body.input("class_logits").cast("float"), axis=1).slice(1, 2**31, axis=1)
    scores = scores.reshape(rois.size(0), rois.size(1), -1)  # [BR, K] -> [B, R, K]
    number = body.range(rois.size(1)).unsqueeze(1)  # [R, 1]
    real = number < body.input("num_rois").cast("int64").reshape(-1, 1, 1)  # [B, R, 1]
    candidate = (scores > body.attribute("score_threshold", "float")) & real
    return body.where(candidate, scores, NEVER).reshape(0, -1)


def _candidates(body: BodyBuilder, best: Value, index: Value) -> tuple[Value, Value]:
    """Candidates with scores `best` [B, T] at `index` [B, T]: (box, score, class) [B, T, 6], and which are valid."""
    rois, deltas = body.input("rois"), body.input("bbox_deltas").cast("float")
    num_classes = body.input("class_logits").size(1) - 1
    num_groups = deltas.size(1) / 4  # G
    roi = index / num_classes
    label = index - roi * num_classes
    row = roi + (body.range(rois.size(0)) * rois.size(1)).unsqueeze(1)  # of all images' rois
    group = body.op("Min", label + 1, num_groups - 1)
    delta = deltas.reshape(-1, 4).gather(row * num_groups + group)  # [B, T, 4]
    box = rois.reshape(-1, 4).gather(row)
    weights, clip = body.attribute("box_coder_weights", "floats"), body.attribute("box_clip", "float")
    box = clip_boxes(decode_boxes(body, delta, box, weights, clip), body.input("im_info"), -1, 1)
    valid = (best > NEVER).unsqueeze(2) & large_boxes(box, body.attribute("min_size", "float"))
    box = body.where(valid, box, AWAY)
    return body.concat(box, best.unsqueeze(2), label.cast("float").unsqueeze(2), axis=2), valid


def _stays(body: BodyBuilder, candidates: Value, valid: Value, kept: Value, before: Value) -> Value:
    """Which `candidates` [B, T, 6] survive `kept` [B, D, 6] and one another, 1 or 0, float32 [B, 1, T].

    `before` [D + T, T] is true where the row's box has priority over the column's candidate.
    """
    rows = body.concat(kept, candidates, axis=1)  # [B, D + T, 6]
    corners, label = rows.slice(0, 4, axis=2), rows.slice(5, 6, axis=2)
    first, last = kept.size(1), 2**31
    columns = Columns(body, corners.slice(first, last, axis=1))
    same_class = label.equal(label.slice(first, last, axis=1).transpose(0, 2, 1))
    overlaps = columns.iou(corners) > body.attribute("nms_threshold", "float")
    suppresses = (overlaps & same_class & before).cast("float")
    by_kept = suppresses.slice(0, first, axis=1).reduce("Max", axis=1, keepdims=True)  # [B, 1, T]
    free = valid.cast("float").transpose(0, 2, 1) * (1.0 - by_kept)
    return keep_greedily(body, free, suppresses.slice(first, last, axis=1))


def _write_detections(body: BodyBuilder, kept: Value, count: Value, slots: Value) -> None:
    """The outputs from `kept` [B, D, 6], of which `count` [B, 1] rows are used (or more than D)."""
    used = slots < count  # [B, D]
    scales = body.input("im_info").gather([3, 2, 3, 2], axis=1).unsqueeze(1)  # [B, 1, 4] (x, y, x, y)
    labels = body.where(used, kept.slice(5, 6, axis=2).squeeze(2), np.float32(-1))
    body.output("num_detections", used.cast("int32").reduce("Sum", axis=1, keepdims=True))
    body.output("detection_boxes", kept.slice(0, 4, axis=2) / scales)
    body.output("detection_scores", kept.slice(4, 5, axis=2).squeeze(2))
    body.output("detection_classes", labels.cast("int32"))
