// The candidates of one class of one image, from logits to the boxes that stay: a block of threads.
#pragma once

#include "box_detections/workspace.h"

namespace edgercnn::box_detections {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kAhead = 4;  // logits that a thread has under way at a time

template <typename T>
struct alignas(4 * sizeof(T)) Deltas {
    T x, y, w, h;
};

struct alignas(16) ImageInfo {
    float valid_height, valid_width, scale_y, scale_x;
};

template <typename T>
struct Arguments {
    BoxDetections op;
    Sizes sizes;
    Workspace workspace;
    const Box* rois;           // [B][R]
    const int32_t* num_rois;   // [B]
    const T* class_logits;     // [B][R][K + 1]
    const Deltas<T>* deltas;   // [B][R][K + 1], or [B][R] for all classes
    const ImageInfo* im_info;  // [B]
    int32_t* num_detections;   // [B]
    Box* boxes;                // [B][D], and so on
    float* scores;
    int32_t* classes;
};

template <typename T>
DEVICE int usedRois(const Arguments<T>& a, int image) {
    const int count = a.num_rois[image];
    return count < 0 ? 0 : count > a.op.rois ? a.op.rois : count;
}

template <typename T>
DEVICE Box candidateBox(const Arguments<T>& a, const ImageInfo& info, int image, int label, int roi) {
    const int64_t row = static_cast<int64_t>(image) * a.op.rois + roi;
    const Deltas<T> delta = a.deltas[a.op.class_agnostic ? row : row * (a.op.classes + 1) + label + 1];
    const BoxCoder coder = boxCoder(a.op.box_coder_weights, a.op.box_clip);
    const Box box = decodeBox(to_float(delta.x), to_float(delta.y), to_float(delta.w), to_float(delta.h), a.rois[row],
                              coder);
    return clipBox(box, info.valid_height, info.valid_width);
}

// The class's candidates to `keys`, in no certain order and at most `capacity`; their true number to all threads.
template <typename T>
DEVICE int collectCandidates(const Arguments<T>& a, int image, int label, RankKey* keys, int capacity) {
    __shared__ unsigned counter;
    if (threadIdx.x == 0) counter = 0;
    __syncthreads();
    const int rois = usedRois(a, image), columns = a.op.classes + 1;
    const int64_t first = static_cast<int64_t>(image) * a.op.rois;
    for (int base = threadIdx.x; base < rois; base += kAhead * kThreads) {
        T logits[kAhead];
        RowStatistics statistics[kAhead];
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {  // all loads before any use
            const int64_t row = first + min(base + i * kThreads, rois - 1);
            logits[i] = a.class_logits[row * columns + label + 1];
            statistics[i] = a.workspace.statistics[row];
        }
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
            const int roi = base + i * kThreads;
            const float score = expf(to_float(logits[i]) - statistics[i].maximum) / statistics[i].sum;
            if (roi >= rois || !(score > a.op.score_threshold)) continue;
            const int place = atomicAdd(&counter, 1u);
            if (place < capacity) keys[place] = rankKey(score, roi * a.op.classes + label);
        }
    }
    __syncthreads();
    const int count = counter;
    __syncthreads();  // before anyone clears it
    return count;
}

// One class's candidates, best first.
struct Candidates {
    int count;
    RankKey* keys;
    Box* boxes;
    TileSet* suppressors;  // of each box, within its tile
    TileSet* alive;        // a bit per box
};

DEVICE void placeBoxes(Candidates& candidates, unsigned char* memory, int capacity) {
    candidates.boxes = reinterpret_cast<Box*>(memory);
    candidates.suppressors = reinterpret_cast<TileSet*>(candidates.boxes + capacity);
    candidates.alive = candidates.suppressors + capacity;
}

// This block's part of the workspace: the one it has, or else the next free one.
template <typename T>
DEVICE unsigned char* claimSlot(const Arguments<T>& a, unsigned char* slot) {
    __shared__ unsigned number;
    if (slot != nullptr) return slot;
    if (threadIdx.x == 0) number = atomicAdd(a.workspace.slots_taken, 1u);
    __syncthreads();
    return a.workspace.slots + number * a.sizes.slot_bytes;
}

// Candidates collected and sorted, with memory for their boxes.
template <typename T>
DEVICE Candidates sortedCandidates(const Arguments<T>& a, int image, int label, unsigned char*& slot) {
    unsigned char* shared = dynamic_shared();
    Candidates candidates{};
    candidates.keys = reinterpret_cast<RankKey*>(shared);
    candidates.count = collectCandidates(a, image, label, candidates.keys, a.sizes.shared_keys);
    if (candidates.count == 0) return candidates;
    if (candidates.count <= a.sizes.shared_candidates) {
        placeBoxes(candidates, shared + a.sizes.boxes_offset, a.sizes.shared_candidates);
    } else {
        slot = claimSlot(a, slot);
        placeBoxes(candidates, slot, a.op.rois);
    }
    if (candidates.count > a.sizes.shared_keys) {
        candidates.keys = reinterpret_cast<RankKey*>(slot + boxBytes(a.op.rois));
        collectCandidates(a, image, label, candidates.keys, candidates.count);
    }
    const int size = nextPowerOfTwo(candidates.count);
    for (int i = candidates.count + threadIdx.x; i < size; i += kThreads) candidates.keys[i] = kNoCandidate;
    __syncthreads();
    blockSortDescending<kThreads>(candidates.keys, size);
    return candidates;
}

// Boxes in the order of the keys; alive are those that are large enough. A warp per tile.
template <typename T>
DEVICE void decodeCandidates(const Arguments<T>& a, int image, int label, const Candidates& candidates) {
    const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
    const ImageInfo info = a.im_info[image];
    for (int tile = warp; tile * kTile < candidates.count; tile += kWarps) {
        TileSet alive = 0;
#pragma unroll
        for (int half = 0; half < kTile; half += kWarpSize) {
            const int i = tile * kTile + half + lane;
            bool large = false;
            if (i < candidates.count) {
                const int roi = (keyIndex(candidates.keys[i]) - label) / a.op.classes;
                const Box box = candidateBox(a, info, image, label, roi);
                candidates.boxes[i] = box;
                large = largeBox(box, a.op.min_size);
            }
            alive |= static_cast<TileSet>(__ballot_sync(kFullMask, large)) << half;
        }
        if (lane == 0) candidates.alive[tile] = alive;
    }
    __syncthreads();
}

// For every box, the boxes before it in its tile that suppress it. A warp per box, two other boxes per lane.
DEVICE void findSuppressors(const Candidates& candidates, float threshold) {
    const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
    for (int i = warp; i < candidates.count; i += kWarps) {
        const Box box = candidates.boxes[i];
        const float area = boxArea(box);
        TileSet found = 0;
        for (int first = i / kTile * kTile; first < i; first += kWarpSize) {
            const int other = first + lane;
            bool drops = false;
            if (other < i) {
                const Box before = candidates.boxes[other];
                drops = suppresses(before, boxArea(before), box, area, threshold);
            }
            found |= static_cast<TileSet>(__ballot_sync(kFullMask, drops)) << (first % kTile);
        }
        if (lane == 0) candidates.suppressors[i] = found;
    }
    __syncthreads();
}

DEVICE int lowestBit(TileSet set) { return __ffsll(static_cast<long long>(set)) - 1; }

// Thin candidates.alive to the boxes that stay, at least the best `most` of them; returns their number.
DEVICE int keepGreedily(const Candidates& candidates, int most, float threshold) {
    findSuppressors(candidates, threshold);
    const Box* boxes = candidates.boxes;
    auto suppressors = [&](int i) { return candidates.suppressors[i]; };
    auto suppressed = [&](int tile, TileSet kept, int i) {
        const Box box = boxes[i];
        const float area = boxArea(box);
        for (; kept; kept &= kept - 1) {
            const Box other = boxes[tile * kTile + lowestBit(kept)];
            if (suppresses(other, boxArea(other), box, area, threshold)) return true;
        }
        return false;
    };
    return blockNms<kThreads>(candidates.count, most, candidates.alive, suppressors, suppressed);
}

// The keys of the best `count` boxes that are alive to the image's list. Its order is left to chance: keys are unique.
DEVICE void appendAlive(const Candidates& candidates, int count, RankKey* list, unsigned* listed) {
    __shared__ unsigned warp_sums[kWarpSize], start;
    if (threadIdx.x == 0) start = atomicAdd(listed, static_cast<unsigned>(count));
    const int tiles = divideUp(candidates.count, kTile), per_thread = divideUp(tiles, kThreads);
    const int first = threadIdx.x * per_thread, last = min(first + per_thread, tiles);
    unsigned sum = 0;
    for (int tile = first; tile < last; ++tile) sum += __popcll(candidates.alive[tile]);
    int rank = blockExclusiveSum<kThreads>(sum, warp_sums);
    for (int tile = first; tile < last; ++tile) {
        for (TileSet set = candidates.alive[tile]; set && rank < count; set &= set - 1, ++rank) {
            list[start + rank] = candidates.keys[tile * kTile + lowestBit(set)];
        }
    }
}

}  // namespace edgercnn::box_detections
