// RpnProposals, second kernel: the candidates of every level, best first, and their boxes.
//
// B images, L levels, A anchors per cell, N candidates of a level.
//
// One block per level and image. A large level arrives as many thousand keys in slow memory. A sample of them tells a
// bound above which there are about 2 N; those are collected in one pass and sorted in shared memory, and if there are
// at least N of them, the first N are the best N for certain. Only if not, the exact selection goes over all keys.
#pragma once

#include "rpn_proposals/select.h"

namespace edgercnn::rpn_proposals {

constexpr int kLeastSampleRank = 32;  // of the bound among the sampled keys: their number varies by a sixth

template <int kThreads>
struct RankShared {
    RankKey keys[kRankRoom<kThreads>];
    SelectScratch scratch;
    unsigned counter;
    int valid;
};

// A bound that about 2 `wanted` of the keys reach, or more if that is a small part of them.
template <int kThreads>
DEVICE RankKey boundBySample(const RankKey* keys, int size, int wanted, RankShared<kThreads>& shared) {
    shared.keys[threadIdx.x] = keys[static_cast<long long>(size) * threadIdx.x / kThreads];
    __syncthreads();
    const int rank = max(static_cast<int>(2ll * wanted * kThreads / size), kLeastSampleRank);
    return blockSelect<kThreads>([&](int i) { return shared.keys[i]; }, kThreads, rank, shared.scratch);
}

// Sort `keys` in global memory, a power of two of them, kRankRoom or more: bitonic, strides below kRankRoom in shared
// memory. A part that must ascend is sorted descending and written back in reverse.
template <int kThreads>
DEVICE void sortLarge(RankKey* keys, int size, RankKey* room) {
    constexpr int kRoom = kRankRoom<kThreads>;
    for (int width = kRoom; width <= size; width *= 2) {
        for (int stride = width / 2; stride >= kRoom; stride /= 2) {
            for (int pair = threadIdx.x; pair < size / 2; pair += kThreads) {
                const int low = 2 * pair - (pair & (stride - 1)), high = low + stride;
                const RankKey first = keys[low], second = keys[high];
                const bool descending = (low & width) == 0;
                if ((first < second) == descending) {
                    keys[low] = second;
                    keys[high] = first;
                }
            }
            __syncthreads();
        }
        for (int part = 0; part < size; part += kRoom) {
            for (int i = threadIdx.x; i < kRoom; i += kThreads) room[i] = keys[part + i];
            __syncthreads();
            blockSortDescending<kThreads>(room, kRoom, width == kRoom ? 2 : kRoom);
            const int flip = (part & width) == 0 ? 0 : kRoom - 1;
            for (int i = threadIdx.x; i < kRoom; i += kThreads) keys[part + i] = room[i ^ flip];
            __syncthreads();
        }
    }
}

// Fill `keys` up to a power of two, at least `least_size`, with kNoCandidate; returns that size. Ends with a barrier.
template <int kThreads>
DEVICE int padded(RankKey* keys, int count, int least_size) {
    const int size = max(nextPowerOfTwo(count), least_size);
    for (int i = count + threadIdx.x; i < size; i += kThreads) keys[i] = kNoCandidate;
    __syncthreads();
    return size;
}

// The `wanted` greatest of `keys`, or all if there are fewer, descending, to shared memory or to `large`; their number
// to `found`. `large` has room for nextPowerOfTwo(wanted) keys if that is above kRankRoom.
template <int kThreads>
DEVICE const RankKey* rankKeys(const RankKey* keys, int size, int wanted, RankKey* large, RankShared<kThreads>& shared,
                               int& found) {
    constexpr int kRoom = kRankRoom<kThreads>;
    const auto key_at = [&](int i) { return keys[i]; };
    found = 0;
    if (wanted > kRoom) {
        const RankKey least = blockSelect<kThreads>(key_at, size, wanted, shared.scratch);
        found = blockCollect<kThreads>(key_at, size, least, large, wanted, &shared.counter);
        sortLarge<kThreads>(large, padded<kThreads>(large, found, kRoom), shared.keys);
        return large;
    }
    bool certain = false;
    if (size <= min(2 * wanted, kRoom)) {
        found = blockCollect<kThreads>(key_at, size, 1, shared.keys, kRoom, &shared.counter);
        certain = true;
    } else if (2 * wanted <= kRoom) {
        const RankKey bound = boundBySample(keys, size, wanted, shared);
        found = blockCollect<kThreads>(key_at, size, bound, shared.keys, kRoom, &shared.counter);
        certain = found >= wanted && found < kRoom;  // at kRoom some may have been left out
    }
    if (!certain) {
        const RankKey least = blockSelect<kThreads>(key_at, size, wanted, shared.scratch);
        found = blockCollect<kThreads>(key_at, size, least, shared.keys, wanted, &shared.counter);
    }
    blockSortDescending<kThreads>(shared.keys, padded<kThreads>(shared.keys, found, 1));
    found = min(found, wanted);
    return shared.keys;
}

// Whether sigmoid(logit) >= threshold in float32. Sigmoid is at least 0, whatever its rounding.
DEVICE bool reaches(float logit, float threshold) {
    return threshold <= 0.0f || 1.0f / (1.0f + expf(-logit)) >= threshold;
}

// The anchor `index` of a level, moved by its deltas and clipped to the image's valid area.
template <typename T>
DEVICE Box proposalOf(const RpnProposals& op, const Level& level, int level_index, unsigned index, const Map<T>& deltas,
                      const float* im_info) {
    const unsigned cell = index / op.anchors, a = index - cell * op.anchors;
    const unsigned y = cell / level.width, x = cell - y * level.width;
    const float shift_x = static_cast<float>(static_cast<int>(x) * level.stride_x);
    const float shift_y = static_cast<float>(static_cast<int>(y) * level.stride_y);
    const float* base = op.base_anchors + 4 * (level_index * op.anchors + a);
    const Box anchor = {shift_x + base[0], shift_y + base[1], shift_x + base[2], shift_y + base[3]};
    const BoxCoder coder = boxCoder(op.box_coder_weights, op.box_clip);
    const float dx = deltas(4 * a, cell), dy = deltas(4 * a + 1, cell);
    const float dw = deltas(4 * a + 2, cell), dh = deltas(4 * a + 3, cell);
    return clipBox(decodeBox(dx, dy, dw, dh, anchor, coder), im_info[0], im_info[1]);
}

// The valid boxes of one level of one image and their logits, best first; [L][B] in grid.x.
template <typename T, int kThreads>
__global__ void __launch_bounds__(kThreads)
    rankAndDecode(GRID_CONSTANT(RpnProposals) op, GRID_CONSTANT(Plan) plan, GRID_CONSTANT(LevelPointers) bbox_deltas,
                  const float* im_info, Workspace workspace) {
    __shared__ RankShared<kThreads> shared;
    const int index = blockIdx.x / plan.batch, image = blockIdx.x % plan.batch;
    const Level& level = plan.level[index];
    const RankKey* keys = workspace.keys + image * plan.keys + level.first_key;
    RankKey* large = workspace.sorted + image * plan.sorted + level.first_sorted;
    int ranked = 0;
    const RankKey* best = rankKeys<kThreads>(keys, level.keys, level.candidates, large, shared, ranked);

    const Map<T> deltas = mapOf<T>(bbox_deltas.of[index], plan, level, image, 4 * plan.anchors, plan.deltas_pitch);
    const size_t first = static_cast<size_t>(image) * plan.candidates + level.first_candidate;
    int count = 0;
    for (int base = 0; base < ranked; base += kThreads) {
        const int i = base + threadIdx.x;
        Box box = {};
        float logit = 0.0f;
        bool valid = false;
        if (i < ranked) {
            logit = keyScore(best[i]);
            box = proposalOf(op, level, index, keyIndex(best[i]), deltas, im_info + 4 * image);
            valid = largeBox(box, op.min_size) && reaches(logit, op.score_threshold);
        }
        const int place = count + static_cast<int>(blockExclusiveSum<kThreads>(valid, shared.scratch.counts));
        if (valid) {
            workspace.boxes[first + place] = box;
            workspace.logits[first + place] = logit;
        }
        if (threadIdx.x == kThreads - 1) shared.valid = place + valid;
        __syncthreads();
        count = shared.valid;  // written again only behind the barriers of the next sum
    }
    if (threadIdx.x == 0) workspace.counts[image * plan.levels + index] = count;
}

}  // namespace edgercnn::rpn_proposals
