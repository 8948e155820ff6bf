// RpnProposals, first kernel: the best logits of every chunk of every level, as keys.
//
// B images, L levels, A anchors per cell; an anchor's index is (y W + x) A + a.
//
// A chunk is a run of cells with all their anchors, at most 8192 logits: many blocks for a large level, and not too
// many keys for the next kernel. Logits are read once, in the order of memory, into shared memory in the order of their
// indices; so ties fall alike in all layouts.
#pragma once

#include "rpn_proposals/plan.h"

namespace edgercnn::rpn_proposals {

// A level's map of one image, [C, H, W] whatever the layout.
template <typename T>
struct Map {
    const T* data;
    size_t channel, cell_step;

    DEVICE float operator()(int c, int cell) const { return to_float(data[c * channel + cell * cell_step]); }
};

template <typename T>
DEVICE Map<T> mapOf(const void* data, const Plan& plan, const Level& level, int image, int channels, int pitch) {
    const size_t step = plan.channels_last ? pitch : 1, channel = plan.channels_last ? 1 : level.cells;
    const size_t size = static_cast<size_t>(level.cells) * (plan.channels_last ? pitch : channels);
    return {static_cast<const T*>(data) + image * size, channel, step};
}

constexpr int kSelectThreads = 512;

struct SelectShared {
    unsigned logits[kChunkLogits];  // the upper halves of the keys, by index
    SelectScratch scratch;
    unsigned counter;
};

// Logits of `cells` cells from `first_cell` on to shared memory, neighbouring lanes reading neighbouring addresses.
// Threads beyond the last logit take it, too: with a condition nvcc would let each read wait for the one before.
template <typename T>
DEVICE void stageLogits(const Map<T>& map, int first_cell, int cells, const Plan& plan, unsigned* staged) {
    constexpr int kAtOnce = 8;  // reads of a thread that are under way together
    const int size = cells * plan.anchors;
    const unsigned run = plan.channels_last ? plan.anchors : cells;  // elements that lie together in memory
    const unsigned long long scale = 1ull + 0xffffffffu / run;       // i / run = i * scale >> 32, exact below 2^16
    for (int base = 0; base < size; base += kAtOnce * kSelectThreads) {
        float values[kAtOnce];
        int places[kAtOnce];
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k) {
            const unsigned i = min(base + k * kSelectThreads + static_cast<int>(threadIdx.x), size - 1);
            const unsigned quotient = static_cast<unsigned>(i * scale >> 32), rest = i - quotient * run;
            const int cell = plan.channels_last ? quotient : rest, a = plan.channels_last ? rest : quotient;
            places[k] = cell * plan.anchors + a;
            values[k] = map(a, first_cell + cell);
        }
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k) staged[places[k]] = static_cast<unsigned>(rankKey(values[k], 0) >> 32);
    }
}

// The best min(pre_nms_top_n, all) keys of one chunk of cells, [chunks of all levels, B] in grid.x.
template <typename T>
__global__ void __launch_bounds__(kSelectThreads)
    selectInChunks(GRID_CONSTANT(Plan) plan, GRID_CONSTANT(LevelPointers) objectness, Workspace workspace) {
    __shared__ SelectShared shared;
    const int image = blockIdx.x / plan.chunks, chunk_of_image = blockIdx.x % plan.chunks;
    int index = plan.levels - 1;
    while (chunk_of_image < plan.level[index].first_chunk) --index;
    const Level& level = plan.level[index];
    if (chunk_of_image == 0 && threadIdx.x == 0) workspace.done[image] = 0;

    const int chunk = chunk_of_image - level.first_chunk;
    const int first_cell = chunk * level.chunk_cells, cells = min(level.chunk_cells, level.cells - first_cell);
    const Map<T> map = mapOf<T>(objectness.of[index], plan, level, image, plan.anchors, plan.objectness_pitch);
    stageLogits(map, first_cell, cells, plan, shared.logits);
    __syncthreads();

    const unsigned first_index = static_cast<unsigned>(first_cell) * plan.anchors;
    const auto key_at = [&](int i) -> RankKey {
        const RankKey upper = shared.logits[i];
        return upper == 0 ? kNoCandidate : upper << 32 | static_cast<unsigned>(~(first_index + i));
    };
    const int size = cells * plan.anchors, wanted = min(plan.pre_nms_top_n, size);
    const size_t first_key = level.first_key + static_cast<size_t>(chunk) * level.chunk_keys;
    RankKey* keys = workspace.keys + image * plan.keys + first_key;
    if (wanted == size) {
        for (int i = threadIdx.x; i < size; i += kSelectThreads) keys[i] = key_at(i);
        return;
    }
    const RankKey least = blockSelect<kSelectThreads>(key_at, size, wanted, shared.scratch);
    const int found = blockCollect<kSelectThreads>(key_at, size, least, keys, wanted, &shared.counter);
    for (int i = found + threadIdx.x; i < wanted; i += kSelectThreads) keys[i] = kNoCandidate;
}

}  // namespace edgercnn::rpn_proposals
