// RpnProposals, third kernel: which boxes suppress which, and how the levels' boxes interleave.
//
// B images, L levels; boxes of a level stand best first, in tiles of 64.
//
// Whether one box suppresses another does not depend on the others, so it is found for all pairs of a level, by as many
// blocks as there are pairs of tiles: one bit each. Nor does it depend on NMS which boxes of other levels are better
// than one: blocks of their own look that up (count_better.h), for the merge to come.
#pragma once

#include "rpn_proposals/count_better.h"

namespace edgercnn::rpn_proposals {

constexpr int kMaskThreads = 2 * kTile;  // two for each box of the second tile: a thread tests half of the first tile
constexpr int kMaskWidth = kTile / 2;

// float32(intersection / union) > threshold without a division. The next float above the threshold is threshold + 2
// half_step, so the quotient rounds to more than the threshold just if it is above threshold + half_step; equal to that
// it cannot be, for then the intersection, a product with a number of 25 bits, would not be a float. So what is asked
// is intersection - threshold * union > half_step * union: the left side is rounded once, to the nearest float, which
// moves it to no other side of the right one, a float.
struct IouTest {
    float threshold, half_step;

    // Whether all products of the box, shrunk by kShrink, keep their bits, and no side of it is above 1.
    DEVICE bool precise(Box box) const {
        constexpr float kLeast = 0x1p-16f, kMost = 0x1p16f;
        return threshold > 1e-6f && box.x2 - box.x1 >= kLeast && box.y2 - box.y1 >= kLeast && box.x2 <= kMost &&
               box.y2 <= kMost;
    }
};

inline IouTest iouTest(float threshold) { return {threshold, 0.5f * (nextafterf(threshold, 2.0f) - threshold)}; }

constexpr float kShrink = 0x1p-16f;  // to px of 2^16, a power of two, so that nothing rounds otherwise

DEVICE Box shrunk(Box box) { return {box.x1 * kShrink, box.y1 * kShrink, box.x2 * kShrink, box.y2 * kShrink}; }

DEVICE float saturated(float value) {
#ifdef __CUDA_ARCH__
    return __saturatef(value);  // a part of the subtraction
#else
    return fminf(fmaxf(value, 0.0f), 1.0f);
#endif
}

// `bits`, moved up by one, with the sign of `number` below.
DEVICE unsigned withSign(unsigned bits, float number) {
#ifdef __CUDA_ARCH__
    return __funnelshift_l(__float_as_uint(number), bits, 1);
#else
    return bits << 1 | static_cast<unsigned>(signbit(number) != 0);
#endif
}

// Which of 32 boxes suppress this one, all shrunk, by products alone. Minimum, maximum and comparison have half of the
// rate of a subtraction: so the width is cut off at 0 by the subtraction's saturation (it is never above 1), and the
// answer is a sign. Where boxes are apart the intersection is 0 or less.
DEVICE unsigned suppressorsAmong(const Box* boxes, const float* areas, Box box, float area, IouTest test) {
    unsigned bits = 0;
#pragma unroll
    for (int i = kMaskWidth - 1; i >= 0; --i) {
        const Box other = boxes[i];
        const float width = saturated(fminf(other.x2, box.x2) - fmaxf(other.x1, box.x1));
        const float intersection = width * (fminf(other.y2, box.y2) - fmaxf(other.y1, box.y1));
        const float union_area = areas[i] + area - intersection;
        const float excess = fmaf(-test.threshold, union_area, intersection);
        bits = withSign(bits, fmaf(test.half_step, union_area, -excess));
    }
    return bits;
}

// The same by quotients, of those that are `allowed`; boxes as they are.
DEVICE unsigned dividedSuppressorsAmong(const Box* boxes, unsigned allowed, Box box, float threshold) {
    unsigned bits = 0;
    for (; allowed != 0; allowed &= allowed - 1) {
        const int i = __ffs(allowed) - 1;
        if (suppresses(boxes[i], boxArea(boxes[i]), box, boxArea(box), threshold)) bits |= 1u << i;
    }
    return bits;
}

DEVICE void maskPair(const Plan& plan, IouTest test, const Workspace& workspace, int image, int pair_of_image) {
    __shared__ Box boxes[kTile];
    __shared__ float areas[kTile];
    const int index = levelOf(plan, pair_of_image, [&](int level) { return plan.level[level].first_pair; });
    const Level& level = plan.level[index];
    const int pair = pair_of_image - level.first_pair;
    int column = static_cast<int>((sqrtf(8.0f * pair + 1.0f) - 1.0f) * 0.5f);  // about
    while (pairOf(0, column) > pair) --column;
    while (pairOf(0, column + 1) <= pair) ++column;
    const int tile = pair - pairOf(0, column);

    const Box* all = workspace.boxes + static_cast<size_t>(image) * plan.candidates + level.first_candidate;
    const int lane = threadIdx.x % kTile, half = threadIdx.x / kTile, last = level.candidates - 1;
    const int i = tile * kTile + lane, j = column * kTile + lane;
    // Boxes are read along with their number, not after it: beyond it is what was there before, and it counts nowhere.
    // Nothing ends before the barrier, lest nvcc move the reads behind the end.
    const Box box = all[min(j, last)], other = all[min(i, last)];
    const int count = workspace.counts[image * plan.levels + index];
    const Box small = shrunk(box);
    const float area = boxArea(small);
    if (half == 0) {
        boxes[lane] = shrunk(other);
        areas[lane] = boxArea(shrunk(other));
    }
    const bool precise = (j >= count || test.precise(box)) && (i >= count || test.precise(other));
    const bool all_precise = __syncthreads_and(precise);
    if (column * kTile >= count) return;
    const int first = half * kMaskWidth;
    const int before = j >= count ? 0 : tile == column ? lane - first : kMaskWidth;  // these that come before this box
    const unsigned allowed = before >= kMaskWidth ? ~0u : before <= 0 ? 0u : (1u << before) - 1;
    const unsigned bits = all_precise
                              ? allowed & suppressorsAmong(boxes + first, areas + first, small, area, test)
                              : dividedSuppressorsAmong(all + tile * kTile + first, allowed, box, test.threshold);
    uint2& word = workspace.mask[(static_cast<size_t>(image) * plan.pairs + pair_of_image) * kTile + lane];
    (half == 0 ? word.x : word.y) = bits;
}

// The mask of one pair of tiles, or a tile's better boxes of other levels; [searchBlocks, B], then
// [pairs of all levels, B] in grid.x.
__global__ void __launch_bounds__(kMaskThreads)
    suppressionMask(GRID_CONSTANT(Plan) plan, IouTest test, Workspace workspace) {
    const int searches = searchBlocks(plan), all_searches = plan.batch * searches;
    const int block = blockIdx.x;
    if (block < all_searches) {
        countBetter(plan, workspace, block / searches, block % searches);
    } else {
        maskPair(plan, test, workspace, (block - all_searches) / plan.pairs, (block - all_searches) % plan.pairs);
    }
}

inline int maskBlocks(const Plan& plan) { return plan.pairs + searchBlocks(plan); }

}  // namespace edgercnn::rpn_proposals
