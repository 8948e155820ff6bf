// RpnProposals, first kernel: what a large level hands on to be ranked.
//
// B images, L levels, A anchors per cell, N candidates of a level; an anchor's index is (y W + x) A + a.
//
// Large is a level whose logits do not fit the registers of the next kernel's block. A chunk of it is a run of cells
// with all their anchors, at most 8192 logits: a block each. All blocks of a level look at the same sample of its
// logits, which tells a bound that N logits of the level reach, almost for certain, and not many more. Those of the own
// chunk that do are handed on: from all chunks together one to four times N. If they are fewer than N, the next kernel
// finds out; if they are more than a chunk's room, N at least, an exact selection leaves the best of them.
#pragma once

#include "rpn_proposals/plan.h"

namespace edgercnn::rpn_proposals {

// A level's map of one image, [C, H, W] whatever the layout.
template <typename T>
struct Map {
    const T* data;
    unsigned channel, cell_step;  // elements from one to the next

    DEVICE T raw(unsigned c, unsigned cell) const {
        return data[static_cast<size_t>(c) * channel + static_cast<size_t>(cell) * cell_step];
    }
    DEVICE float operator()(unsigned c, unsigned cell) const { return to_float(raw(c, cell)); }
};

template <typename T>
DEVICE Map<T> mapOf(const void* data, const Plan& plan, const Level& level, int image, int channels, int pitch) {
    const unsigned step = plan.channels_last ? pitch : 1, channel = plan.channels_last ? 1 : level.cells;
    const size_t size = static_cast<size_t>(level.cells) * (plan.channels_last ? pitch : channels);
    return {static_cast<const T*>(data) + image * size, channel, step};
}

template <typename T>
DEVICE Map<T> objectnessOf(const LevelPointers& maps, const Plan& plan, int index, int image) {
    return mapOf<T>(maps.of[index], plan, plan.level[index], image, plan.anchors, plan.objectness_pitch);
}

// Logit and key of any anchor of a level, by its index.
template <typename T>
struct Logits {
    Map<T> map;
    unsigned anchors;

    DEVICE float operator()(unsigned index) const {
        const unsigned cell = index / anchors;
        return map(index - cell * anchors, cell);
    }
    DEVICE RankKey key(unsigned index) const { return rankKey((*this)(index), index); }
};

struct Anchor {
    unsigned a, cell;
};

// Logits of a run of cells, at most 8192, numbered in the order of memory: neighbouring lanes read neighbours.
template <typename T>
struct Run {
    Map<T> map;
    unsigned first_cell, anchors, size;
    bool channels_last;
    unsigned length;  // logits that lie together in memory
    unsigned scale;   // i / length = i * scale >> 31, exact up to 8192

    DEVICE Run(const Map<T>& map, unsigned first_cell, unsigned cells, const Plan& plan)
        : map(map), first_cell(first_cell), anchors(plan.anchors), size(cells * anchors),
          channels_last(plan.channels_last), length(channels_last ? anchors : cells), scale((1u << 31) / length + 1) {}

    DEVICE Anchor anchor(unsigned i) const {
        const unsigned quotient = static_cast<unsigned>(static_cast<unsigned long long>(i) * scale >> 31);
        const unsigned rest = i - quotient * length;
        return {channels_last ? rest : quotient, first_cell + (channels_last ? quotient : rest)};
    }
    DEVICE T raw(unsigned i) const {
        const Anchor place = anchor(i);
        return map.raw(place.a, place.cell);
    }
    DEVICE unsigned index(unsigned i) const {
        const Anchor place = anchor(i);
        return place.cell * anchors + place.a;
    }
};

constexpr int kSelectThreads = 512;
constexpr int kOwnLogits = kChunkLogits / kSelectThreads;      // of a thread
constexpr int kSampledLogits = kSampleSize / kSelectThreads;  // by a thread

struct SelectShared {
    RankKey sample[kSampleSize];
    SelectScratch scratch;
    unsigned counter;
};

// Number `i` of a level's sample: a cell in each part of the map, at a place in it that varies, and an anchor that
// varies, lest the sample have only one column of the map, or one anchor. Both go by multiples of irrational numbers,
// which spread evenly.
DEVICE Anchor sampledAnchor(unsigned i, unsigned cells, unsigned anchors) {
    const unsigned place = (i << 16) + (i * 49471u & 0xffffu);  // of 2^27
    const unsigned cell = static_cast<unsigned>(static_cast<unsigned long long>(cells) * place / kSampleSize >> 16);
    return {(i * 37345u & 0xffffu) * anchors >> 16, cell};
}

// The keys of the thread's logits that reach `bound` to the chunk's, in no certain order.
template <typename T>
DEVICE void handOn(const Run<T>& run, const float (&logits)[kOwnLogits], RankKey bound, RankKey* keys, int room,
                   unsigned* counter) {
    const int lane = threadIdx.x % kWarpSize;
    const float least = keyScore(bound);
    const auto key_at = [&](int k) -> RankKey {
        const int i = k * kSelectThreads + static_cast<int>(threadIdx.x);
        return i < static_cast<int>(run.size) ? rankKey(logits[k], run.index(i)) : kNoCandidate;
    };
    unsigned own = 0, takes = 0;
#pragma unroll
    for (int k = 0; k < kOwnLogits; ++k) {
        if (logits[k] < least || key_at(k) < bound) continue;  // few pass the first test
        takes |= 1u << k;
        ++own;
    }
    unsigned inclusive = own;
    for (int offset = 1; offset < kWarpSize; offset *= 2) {
        const unsigned below = __shfl_up_sync(kFullMask, inclusive, offset);
        if (lane >= offset) inclusive += below;
    }
    unsigned start = 0;
    if (lane == kWarpSize - 1 && inclusive > 0) start = atomicAdd(counter, inclusive);
    int place = __shfl_sync(kFullMask, start, kWarpSize - 1) + inclusive - own;
#pragma unroll
    for (int k = 0; k < kOwnLogits; ++k) {
        if (!(takes >> k & 1)) continue;
        if (place < room) keys[place] = key_at(k);
        ++place;
    }
}

// The keys that each chunk hands on, [chunks of all levels, B] in grid.x.
template <typename T>
__global__ void __launch_bounds__(kSelectThreads)
    selectInChunks(GRID_CONSTANT(Plan) plan, GRID_CONSTANT(LevelPointers) objectness, Workspace workspace) {
    __shared__ SelectShared shared;
    const int image = blockIdx.x / plan.chunks, chunk_of_image = blockIdx.x % plan.chunks;
    int index = plan.levels - 1;
    while (chunk_of_image < plan.level[index].first_chunk) --index;
    const Level& level = plan.level[index];
    const int chunk = chunk_of_image - level.first_chunk, first_cell = chunk * level.chunk_cells;
    const Map<T> map = objectnessOf<T>(objectness, plan, index, image);
    const Run<T> run(map, first_cell, min(level.chunk_cells, level.cells - first_cell), plan);
    const Logits<T> all = {map, static_cast<unsigned>(plan.anchors)};

    // All reads at once, before anything is made of what they bring. Threads beyond the last logit take it, too: with a
    // condition nvcc would let each read wait for the one before.
    const int tid = threadIdx.x, last = static_cast<int>(run.size) - 1;
    T sampled[kSampledLogits], raw[kOwnLogits];
#pragma unroll
    for (int k = 0; k < kOwnLogits; ++k) raw[k] = run.raw(min(k * kSelectThreads + tid, last));
#pragma unroll
    for (int k = 0; k < kSampledLogits; ++k) {
        const Anchor place = sampledAnchor(k * kSelectThreads + tid, level.cells, plan.anchors);
        sampled[k] = map.raw(place.a, place.cell);
    }
    if (tid == 0) shared.counter = 0;
#pragma unroll
    for (int k = 0; k < kSampledLogits; ++k) {  // the selection lets each thread read what it wrote itself
        const int i = k * kSelectThreads + tid;
        const Anchor place = sampledAnchor(i, level.cells, plan.anchors);
        shared.sample[i] = rankKey(to_float(sampled[k]), place.cell * plan.anchors + place.a);
    }
    const RankKey bound = blockSelect<kSelectThreads>([&](int i) { return shared.sample[i]; }, kSampleSize,
                                                      level.sample_rank, shared.scratch, level.sample_rank / 4);

    const size_t first_key = level.first_key + static_cast<size_t>(chunk) * level.chunk_keys;
    RankKey* keys = workspace.keys + image * plan.keys + first_key;
    float own[kOwnLogits];
#pragma unroll
    for (int k = 0; k < kOwnLogits; ++k) own[k] = to_float(raw[k]);
    handOn(run, own, bound, keys, level.chunk_keys, &shared.counter);
    __syncthreads();
    int found = shared.counter;
    if (found > level.chunk_keys) {
        const unsigned first_index = static_cast<unsigned>(first_cell) * plan.anchors;
        const auto key_at = [&](int i) { return all.key(first_index + i); };
        const RankKey least = blockSelect<kSelectThreads>(key_at, run.size, level.chunk_keys, shared.scratch);
        found = blockCollect<kSelectThreads>(key_at, run.size, least, keys, level.chunk_keys, &shared.counter);
    }
    for (int i = found + tid; i < level.chunk_keys; i += kSelectThreads) keys[i] = kNoCandidate;
    if (tid == 0) workspace.key_counts[image * plan.chunks + chunk_of_image] = found;
    if (tid == 0 && chunk == 0) workspace.bounds[image * plan.levels + index] = bound;
}

}  // namespace edgercnn::rpn_proposals
