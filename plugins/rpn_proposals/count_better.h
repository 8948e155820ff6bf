// RpnProposals, part of the third kernel: how the levels' boxes interleave.
//
// B images, L levels; boxes of a level stand best first, in tiles of 64.
#pragma once

#include "rpn_proposals/plan.h"

namespace edgercnn::rpn_proposals {

// How many boxes of another level come before box `place` of level `own`: all better ones, and equal ones of lower
// levels. A step of the search looks at three places, so that there are half as many steps, each as long as a read:
// none of its reads is conditional, and none waits for the number of boxes; what lies beyond it counts nowhere.
DEVICE int betterIn(const Plan& plan, const Workspace& workspace, int image, int own, int place, int other) {
    constexpr int kProbes = 3;
    const float* logits = workspace.logits + static_cast<size_t>(image) * plan.candidates;
    const float logit = logits[plan.level[own].first_candidate + place];
    const int count = workspace.counts[image * plan.levels + other], first = plan.level[other].first_candidate;
    const int room = plan.level[other].candidates;
    int better = 0, step = 1;
    while (4 * step <= room) step *= 4;
    for (; step > 0; step /= 4) {
        float found[kProbes];
#pragma unroll
        for (int probe = 0; probe < kProbes; ++probe) {
            found[probe] = logits[first + min(better + (probe + 1) * step, room) - 1];
        }
        int passed = 0;
#pragma unroll
        for (int probe = 0; probe < kProbes; ++probe) {
            const bool before = found[probe] > logit || (found[probe] == logit && other < own);
            passed += static_cast<int>(better + (probe + 1) * step <= count) & static_cast<int>(before);
        }
        better += passed * step;
    }
    return better;
}

// What of `level`, and of all tiles before, comes before number `number`; by `firstOf(level)`.
template <typename FirstOf>
DEVICE int levelOf(const Plan& plan, int number, FirstOf firstOf) {
    int index = 0;
#pragma unroll
    for (int level = 1; level < kMaxLevels; ++level) index += level < plan.levels && number >= firstOf(level);
    return index;
}

// Blocks of an image that count better boxes: for each tile one for every two other levels.
HOST_DEVICE int searchBlocks(const Plan& plan) { return (plan.tiles - plan.levels) * ((plan.levels + 1) / 2); }

DEVICE void countBetter(const Plan& plan, const Workspace& workspace, int image, int search) {
    const int tiles = plan.tiles - plan.levels, tile_of_image = search % tiles;
    const int index = levelOf(plan, tile_of_image, [&](int level) { return plan.level[level].first_tile - level; });
    const int tile = tile_of_image - (plan.level[index].first_tile - index);
    const int place = tile * kTile + static_cast<int>(threadIdx.x) % kTile;
    const int other = search / tiles * 2 + static_cast<int>(threadIdx.x) / kTile;
    if (other >= plan.levels || place >= plan.level[index].candidates) return;
    const size_t list = static_cast<size_t>(image) * plan.levels + other;
    workspace.better[list * plan.candidates + plan.level[index].first_candidate + place] =
        other == index ? 0 : betterIn(plan, workspace, image, index, place, other);
}

}  // namespace edgercnn::rpn_proposals
