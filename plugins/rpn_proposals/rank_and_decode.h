// RpnProposals, second kernel: the candidates of every level, best first, and their boxes.
//
// B images, L levels, A anchors per cell. One block per level and image.
#pragma once

#include "rpn_proposals/rank_level.h"

namespace edgercnn::rpn_proposals {

// Whether sigmoid(logit) >= threshold in float32. Sigmoid is at least 0, whatever its rounding.
DEVICE bool reaches(float logit, float threshold) {
    return threshold <= 0.0f || 1.0f / (1.0f + expf(-logit)) >= threshold;
}

// The anchor `index` of a level, moved by its deltas and clipped to the image's valid area.
template <typename T>
DEVICE Box proposalOf(const RpnProposals& op, const Level& level, int level_index, unsigned index, const Map<T>& deltas,
                      float valid_height, float valid_width) {
    const unsigned cell = index / op.anchors, a = index - cell * op.anchors;
    const unsigned y = cell / level.width, x = cell - y * level.width;
    const float shift_x = static_cast<float>(static_cast<int>(x) * level.stride_x);
    const float shift_y = static_cast<float>(static_cast<int>(y) * level.stride_y);
    const float* base = op.base_anchors + 4 * (level_index * op.anchors + a);
    const Box anchor = {shift_x + base[0], shift_y + base[1], shift_x + base[2], shift_y + base[3]};
    const BoxCoder coder = boxCoder(op.box_coder_weights, op.box_clip);
    const float dx = deltas(4 * a, cell), dy = deltas(4 * a + 1, cell);
    const float dw = deltas(4 * a + 2, cell), dh = deltas(4 * a + 3, cell);
    return clipBox(decodeBox(dx, dy, dw, dh, anchor, coder), valid_height, valid_width);
}

// The valid boxes of one level of one image and their logits, best first; [L][B] in grid.x.
template <typename T, int kThreads>
__global__ void __launch_bounds__(kThreads, kThreads == 256 ? 2 : 1)
    rankAndDecode(GRID_CONSTANT(RpnProposals) op, GRID_CONSTANT(Plan) plan, GRID_CONSTANT(LevelPointers) objectness,
                  GRID_CONSTANT(LevelPointers) bbox_deltas, const float* im_info, Workspace workspace) {
    __shared__ RankShared<kThreads> shared;
    const int index = blockIdx.x / plan.batch, image = blockIdx.x % plan.batch;
    const Level& level = plan.level[index];
    const HandedOn handed = {workspace.keys + image * plan.keys + level.first_key,
                             workspace.key_counts + image * plan.chunks + level.first_chunk,
                             level.chunks > 0 ? workspace.bounds[image * plan.levels + index] : kNoCandidate};
    if (index == 0 && threadIdx.x == 0) workspace.done[image] = 0;
    RankKey* large = workspace.sorted + image * plan.sorted + level.first_sorted;
    int ranked = 0;
    const RankKey* best = rankLevel<T, kThreads>(plan, level, objectnessOf<T>(objectness, plan, index, image), handed,
                                                 large, shared, ranked);

    const Map<T> deltas = mapOf<T>(bbox_deltas.of[index], plan, level, image, 4 * plan.anchors, plan.deltas_pitch);
    const size_t first = static_cast<size_t>(image) * plan.candidates + level.first_candidate;
    const float valid_height = im_info[4 * image], valid_width = im_info[4 * image + 1];
    int count = 0;
    for (int base = 0; base < ranked; base += kThreads) {
        const int i = base + threadIdx.x;
        Box box = {};
        float logit = 0.0f;
        bool valid = false;
        if (i < ranked) {
            logit = keyScore(best[i]);
            box = proposalOf(op, level, index, keyIndex(best[i]), deltas, valid_height, valid_width);
            valid = largeBox(box, op.min_size) && reaches(logit, op.score_threshold);
        }
        const int place = count + static_cast<int>(blockExclusiveSum<kThreads>(valid, shared.scratch.counts));
        if (valid) {
            workspace.boxes[first + place] = box;
            workspace.logits[first + place] = logit;
        }
        count += __syncthreads_count(valid);
    }
    if (threadIdx.x == 0) workspace.counts[image * plan.levels + index] = count;
}

}  // namespace edgercnn::rpn_proposals
