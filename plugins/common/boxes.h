// Box arithmetic of the kernels, operation by operation torchvision's, so that floats are equal.
//
// Boxes are xyxy, float32. NaN goes through: a comparison with NaN is false, and `largeBox` drops such boxes.
#pragma once

#include "common/device.h"

namespace edgercnn {

struct alignas(16) Box {
    float x1, y1, x2, y2;
};

// Divisors of (dx, dy, dw, dh), and the cap on dw and dh before exp.
struct BoxCoder {
    float weight_x, weight_y, weight_w, weight_h, clip;
};

HOST_DEVICE BoxCoder boxCoder(const float weights[4], float clip) {
    return {weights[0], weights[1], weights[2], weights[3], clip};
}

// `box` moved and scaled by the deltas. Ref: Girshick et al., R-CNN (2014), appendix C; BoxCoder.decode_single.
HOST_DEVICE Box decodeBox(float dx, float dy, float dw, float dh, Box box, BoxCoder coder) {
    const float width = box.x2 - box.x1, height = box.y2 - box.y1;
    const float center_x = box.x1 + 0.5f * width, center_y = box.y1 + 0.5f * height;
    const float log_w = dw / coder.weight_w, log_h = dh / coder.weight_h;
    const float new_x = dx / coder.weight_x * width + center_x;
    const float new_y = dy / coder.weight_y * height + center_y;
    const float half_w = 0.5f * (expf(log_w > coder.clip ? coder.clip : log_w) * width);
    const float half_h = 0.5f * (expf(log_h > coder.clip ? coder.clip : log_h) * height);
    return {new_x - half_w, new_y - half_h, new_x + half_w, new_y + half_h};
}

// `value` moved into 0 .. limit; unlike fminf and fmaxf, NaN stays NaN.
HOST_DEVICE float clipSide(float value, float limit) {
    const float positive = value < 0.0f ? 0.0f : value;
    return positive > limit ? limit : positive;
}

// Corners moved into the valid area.
HOST_DEVICE Box clipBox(Box box, float valid_height, float valid_width) {
    return {clipSide(box.x1, valid_width), clipSide(box.y1, valid_height), clipSide(box.x2, valid_width),
            clipSide(box.y2, valid_height)};
}

// Both sides >= min_size; false where a side is NaN.
HOST_DEVICE bool largeBox(Box box, float min_size) {
    return box.x2 - box.x1 >= min_size && box.y2 - box.y1 >= min_size;
}

HOST_DEVICE float boxArea(Box box) { return (box.x2 - box.x1) * (box.y2 - box.y1); }

struct Overlap {
    float intersection, union_area;
};

HOST_DEVICE Overlap overlapOf(Box kept, float kept_area, Box box, float box_area) {
    const float width = fmaxf(fminf(kept.x2, box.x2) - fmaxf(kept.x1, box.x1), 0.0f);
    const float height = fmaxf(fminf(kept.y2, box.y2) - fmaxf(kept.y1, box.y1), 0.0f);
    const float intersection = width * height;
    return {intersection, kept_area + box_area - intersection};
}

// What products tell about float32(intersection / union) > threshold, for a threshold in 0 .. 1; neither `yes` nor `no`
// where it takes the quotient.
//
// A division is 8 to 10 times a product. With b = fl(threshold * union), intersection > b (1 + 4e-7) means that the
// exact quotient is above threshold (1 + 2e-7), more than one step of float32 (1.2e-7), so the rounded one is above the
// threshold, too; likewise below. Only the band between, and products so small that they lose bits, are left open.
struct Verdict {
    bool yes, no;
};

HOST_DEVICE Verdict verdictOf(Overlap overlap, float threshold) {
    const float bound = threshold * overlap.union_area;
    const bool precise = bound > 1e-30f;
    return {precise && overlap.intersection > bound * 1.0000004f, precise && overlap.intersection < bound * 0.9999996f};
}

// Whether float32(intersection / union) > threshold, for a threshold in 0 .. 1; false for two boxes without area.
HOST_DEVICE bool suppresses(Box kept, float kept_area, Box box, float box_area, float threshold) {
    const Overlap overlap = overlapOf(kept, kept_area, box, box_area);
    const Verdict verdict = verdictOf(overlap, threshold);
    if (verdict.yes || verdict.no) return verdict.yes;
    return overlap.intersection / overlap.union_area > threshold;
}

}  // namespace edgercnn
