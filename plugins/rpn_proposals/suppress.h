// RpnProposals, third kernel: which boxes suppress which, and how the levels' boxes interleave.
//
// B images, L levels; boxes of a level stand best first, in tiles of 64.
//
// Whether one box suppresses another does not depend on the others, so it is found for all pairs of a level, by as many
// blocks as there are pairs of tiles: one bit each. Nor does it depend on NMS which boxes of other levels are better
// than one: blocks with a tile against itself, one for each tile, look that up, too, for the merge to come.
#pragma once

#include "rpn_proposals/plan.h"

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

    // Where threshold * area is tiny for one of the boxes, products lose bits.
    DEVICE bool precise(float area) const { return threshold > 1e-20f && threshold * area > 1e-30f; }
};

inline IouTest iouTest(float threshold) { return {threshold, 0.5f * (nextafterf(threshold, 2.0f) - threshold)}; }

// Which of 32 boxes suppress this one, by products alone. Where boxes are apart the intersection is 0 or less.
DEVICE unsigned suppressorsAmong(const Box* boxes, const float* areas, Box box, float area, IouTest test) {
    unsigned bits = 0;
#pragma unroll
    for (int i = 0; i < kMaskWidth; ++i) {
        const Box other = boxes[i];
        const float width = fmaxf(fminf(other.x2, box.x2) - fmaxf(other.x1, box.x1), 0.0f);
        const float intersection = width * (fminf(other.y2, box.y2) - fmaxf(other.y1, box.y1));
        const float union_area = areas[i] + area - intersection;
        const float excess = fmaf(-test.threshold, union_area, intersection);
        bits |= static_cast<unsigned>(excess > test.half_step * union_area) << i;
    }
    return bits;
}

// The same by quotients, of those that are `allowed`.
DEVICE unsigned dividedSuppressorsAmong(const Box* boxes, const float* areas, unsigned allowed, Box box, float area,
                                        float threshold) {
    unsigned bits = 0;
    for (; allowed != 0; allowed &= allowed - 1) {
        const int i = __ffs(allowed) - 1;
        if (suppresses(boxes[i], areas[i], box, area, threshold)) bits |= 1u << i;
    }
    return bits;
}

// How many boxes of each second other level, from `first_level` on, come before box `place` of level `own`: all better
// ones, and equal ones of lower levels. A search in each level, all levels' steps side by side; a step looks at three
// places, so that there are half as many steps, each as long as a read.
DEVICE void countBetter(const Plan& plan, const Workspace& workspace, int image, int own, int place, int first_level) {
    constexpr int kLevels = kMaxLevels / 2;
    const float* logits = workspace.logits + static_cast<size_t>(image) * plan.candidates;
    const float logit = logits[plan.level[own].first_candidate + place];
    int counts[kLevels], better[kLevels];
#pragma unroll
    for (int k = 0; k < kLevels; ++k) {
        const int level = first_level + 2 * k;
        counts[k] = level < plan.levels && level != own ? workspace.counts[image * plan.levels + level] : 0;
        better[k] = 0;
    }
    int step = 1;
    while (4 * step <= plan.most_candidates) step *= 4;
    for (; step > 0; step /= 4) {
#pragma unroll
        for (int k = 0; k < kLevels; ++k) {
            const int level = first_level + 2 * k, first = plan.level[level].first_candidate;
            int passed = 0;
            for (int probe = 1; probe <= 3; ++probe) {
                const int next = better[k] + probe * step;
                const float found = logits[first + max(min(next, counts[k]), 1) - 1];
                passed += next <= counts[k] && (found > logit || (found == logit && level < own));
            }
            better[k] += passed * step;
        }
    }
#pragma unroll
    for (int k = 0; k < kLevels; ++k) {
        const int level = first_level + 2 * k;
        if (level >= plan.levels) break;
        const size_t list = static_cast<size_t>(image) * plan.levels + level;
        workspace.better[list * plan.candidates + plan.level[own].first_candidate + place] = better[k];
    }
}

// The mask of one pair of tiles; [pairs of all levels, B] in grid.x.
__global__ void __launch_bounds__(kMaskThreads)
    suppressionMask(GRID_CONSTANT(Plan) plan, IouTest test, Workspace workspace) {
    __shared__ Box boxes[kTile];
    __shared__ float areas[kTile];
    const int image = blockIdx.x / plan.pairs, pair_of_image = blockIdx.x % plan.pairs;
    int index = plan.levels - 1;
    while (pair_of_image < plan.level[index].first_pair) --index;
    const Level& level = plan.level[index];
    const int pair = pair_of_image - level.first_pair;
    int column = static_cast<int>((sqrtf(8.0f * pair + 1.0f) - 1.0f) * 0.5f);  // about
    while (pairOf(0, column) > pair) --column;
    while (pairOf(0, column + 1) <= pair) ++column;
    const int tile = pair - pairOf(0, column);

    // Boxes are read along with their number, not after it: beyond it is what was there before, and it counts nowhere.
    const Box* all = workspace.boxes + static_cast<size_t>(image) * plan.candidates + level.first_candidate;
    const int lane = threadIdx.x % kTile, half = threadIdx.x / kTile, last = level.candidates - 1;
    const int i = tile * kTile + lane, j = column * kTile + lane;
    const Box box = all[min(j, last)], other = all[min(i, last)];
    const int count = workspace.counts[image * plan.levels + index];
    if (column * kTile >= count) return;
    const float area = boxArea(box), other_area = boxArea(other);
    if (half == 0) {
        boxes[lane] = other;
        areas[lane] = other_area;
    }
    const bool precise = (j >= count || test.precise(area)) && (i >= count || test.precise(other_area));
    const bool all_precise = __syncthreads_and(precise);
    const int first = half * kMaskWidth;
    const int before = j >= count ? 0 : tile == column ? lane - first : kMaskWidth;  // these that come before this box
    const unsigned allowed = before >= kMaskWidth ? ~0u : before <= 0 ? 0u : (1u << before) - 1;
    const unsigned bits =
        all_precise ? allowed & suppressorsAmong(boxes + first, areas + first, box, area, test)
                    : dividedSuppressorsAmong(boxes + first, areas + first, allowed, box, area, test.threshold);
    uint2& word = workspace.mask[(static_cast<size_t>(image) * plan.pairs + pair_of_image) * kTile + lane];
    (half == 0 ? word.x : word.y) = bits;
    if (tile == column && j < count) countBetter(plan, workspace, image, index, j, half);
}

}  // namespace edgercnn::rpn_proposals
