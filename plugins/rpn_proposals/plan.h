// How one launch divides the work, and where in the workspace it keeps what passes from kernel to kernel.
//
// B images, L levels, A anchors per cell, N = min(pre_nms_top_n, H W A) candidates of a level.
#pragma once

#include "common/nms.h"
#include "common/rank.h"
#include "rpn_proposals/kernel.h"

// A large kernel argument, read where it lies: nvcc would copy it to a stack when its address is taken, and the CPU
// library would copy it for every thread.
#ifdef __CUDACC__
#define GRID_CONSTANT(type) const __grid_constant__ type
#else
#define GRID_CONSTANT(type) const type&
#endif

namespace edgercnn::rpn_proposals {

constexpr int kRankThreads = 1024;  // of a block that ranks a level's candidates, if they are not few
constexpr int kChunkLogits = 8192;  // at most, of one block of the first kernel
constexpr int kSampleSize = 2048;         // logits of a level by which its chunks guess what is worth handing on
constexpr int kFewCandidates = 256;       // up to which small blocks do
constexpr int kMostByWarps = 1024;        // up to which a scanning block of 512 threads has a warp for every tile
constexpr int kLogitLimit = 1 << 30;      // of one level of an image
constexpr int kCandidateLimit = 1 << 17;  // of one level of an image: NMS has 8 bytes of shared memory for each 64

// Keys that fit the shared memory of a block that ranks, and keys that each of its threads holds in registers.
template <int kThreads>
constexpr int kRankRoom = kThreads == 256 ? 2048 : 4096;
template <int kThreads>
constexpr int kHeldKeys = kThreads == 1024 ? 8 : 16;

// One level; `first_...` count from the beginning of an image's part.
struct Level {
    int height, width, stride_y, stride_x;
    int cells;                    // H W
    int candidates;               // N
    int chunks;                   // 0: the level is small enough to be ranked straight from its map
    int chunk_cells, chunk_keys;  // of one chunk: cells, and room for the keys that it hands on, N or more if there are
    int sample_rank;              // of the sampled logits, about the first that is handed on
    int first_chunk, first_pair, first_candidate, first_tile;
    size_t first_key, first_sorted;
};

// A pair of tiles (i, j), i <= j, has the number j (j + 1) / 2 + i: all tiles before j, then j itself.
HOST_DEVICE int pairOf(int tile, int column) { return column * (column + 1) / 2 + tile; }

struct Plan {
    int batch, levels, anchors;
    bool channels_last;
    int objectness_pitch, deltas_pitch;
    int pre_nms_top_n, post_nms_top_n;
    int chunks, pairs, candidates, tiles;  // of all levels of an image
    int most_candidates;                   // of any level
    size_t keys, sorted;                   // of all levels of an image
    Level level[kMaxLevels];
};

struct LevelPointers {
    const void* of[kMaxLevels];
};

// What NMS keeps of a tile, and how many boxes it keeps of the level's tiles before.
struct alignas(16) KeptTile {
    TileSet boxes;
    unsigned before;
};

// Arrays, image by image. All but `done` are written by one kernel and read by the next ones.
struct Workspace {
    RankKey* keys;         // [B][keys] what each chunk hands on, in no certain order, then kNoCandidate
    unsigned* key_counts;  // [B][chunks] their number
    RankKey* bounds;       // [B][L] what keys had to reach to be handed on
    RankKey* sorted;       // [B][sorted] room for the levels whose candidates do not fit shared memory
    Box* boxes;            // [B][candidates] valid boxes of each level, best first
    float* logits;         // [B][candidates] theirs
    int* counts;           // [B][L] their number
    uint2* mask;           // [B][pairs][64] TileSet of the first tile's boxes that suppress this one of the second tile
    int* better;           // [B][L][candidates] how many valid boxes of that other level come before this one
    KeptTile* kept;        // [B][tiles] and for each level one more, without boxes
    unsigned* done;        // [B] levels of the image through with NMS (scan_and_merge.h)
};

// Which of the sampled logits of a level is to bound its `candidates` best so as hardly ever to cut off one of them:
// six standard deviations lie between.
inline int sampleRank(int candidates, int logits) {
    const double expected = static_cast<double>(candidates) * kSampleSize / logits;
    return static_cast<int>(ceil(expected + 6.0 * sqrt(expected) + 6.0));
}

inline void divideLevel(Level& level, const RpnProposals& op) {
    level.chunks = divideUp(level.cells, kChunkLogits / op.anchors);
    level.chunk_cells = divideUp(level.cells, level.chunks);
    level.chunks = divideUp(level.cells, level.chunk_cells);
    // more than N where chunks are few: some of them have more than their share
    const int keys = max(op.pre_nms_top_n, static_cast<int>(4ll * level.candidates / level.chunks));
    level.chunk_keys = min(keys, level.chunk_cells * op.anchors);
    level.sample_rank = sampleRank(level.candidates, level.cells * op.anchors);
}

inline Level makeLevel(const RpnProposals& op, int index, const Plan& plan) {
    Level level = {};
    level.height = op.height[index];
    level.width = op.width[index];
    level.stride_y = op.stride_y[index];
    level.stride_x = op.stride_x[index];
    level.cells = level.height * level.width;
    level.candidates = min(op.pre_nms_top_n, level.cells * op.anchors);
    level.first_chunk = plan.chunks;
    level.first_pair = plan.pairs;
    level.first_candidate = plan.candidates;
    level.first_tile = plan.tiles;
    level.first_key = plan.keys;
    level.first_sorted = plan.sorted;
    return level;
}

inline Plan makePlan(const RpnProposals& op) {
    Plan plan = {};
    plan.batch = op.batch;
    plan.levels = op.levels;
    plan.anchors = op.anchors;
    plan.channels_last = op.layout == kNHWC;
    plan.objectness_pitch = op.objectness_pitch;
    plan.deltas_pitch = op.deltas_pitch;
    plan.pre_nms_top_n = op.pre_nms_top_n;
    plan.post_nms_top_n = op.post_nms_top_n;
    for (int i = 0; i < op.levels; ++i) {
        const int logits = op.height[i] * op.width[i] * op.anchors;
        plan.most_candidates = max(plan.most_candidates, min(op.pre_nms_top_n, logits));
    }
    const bool few = plan.most_candidates <= kFewCandidates;
    const int held = few ? 256 * kHeldKeys<256> : kRankThreads * kHeldKeys<kRankThreads>;
    for (int i = 0; i < op.levels; ++i) {
        Level& level = plan.level[i] = makeLevel(op, i, plan);
        if (level.cells * op.anchors > held) divideLevel(level, op);
        plan.chunks += level.chunks;
        plan.pairs += pairOf(0, divideUp(level.candidates, kTile));
        plan.candidates += level.candidates;
        plan.tiles += divideUp(level.candidates, kTile) + 1;
        // TensorRT asks for the workspace of the largest maps once, so that of smaller ones must never be larger, and a
        // smaller map may divide into chunks that hand on more keys: hence room for four times N at least.
        const size_t least = level.chunks > 0 ? 4 * static_cast<size_t>(level.candidates) : 0;
        plan.keys += max(least, static_cast<size_t>(level.chunks) * level.chunk_keys);
        if (level.candidates > kRankRoom<kRankThreads>) plan.sorted += nextPowerOfTwo(level.candidates);
    }
    return plan;
}

// Cuts memory into arrays; from address 0 it only measures.
class Slices {
public:
    explicit Slices(void* memory) : first_(reinterpret_cast<uintptr_t>(memory)), next_(first_) {}
    template <typename T>
    void take(T*& array, size_t size) {
        array = reinterpret_cast<T*>(next_);
        next_ += (size * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    }
    size_t bytes() const { return next_ - first_; }

private:
    static constexpr size_t kAlignment = 256;
    uintptr_t first_, next_;
};

// The arrays' places in `memory`; returns the bytes that they take.
inline size_t divideWorkspace(const Plan& plan, void* memory, Workspace& workspace) {
    const size_t batch = plan.batch, candidates = batch * plan.candidates, segments = batch * plan.levels;
    Slices slices(memory);
    // `better` takes the place of `keys`, which have become boxes by then.
    slices.take(workspace.keys, max(batch * plan.keys, (candidates * plan.levels + 1) / 2));
    workspace.better = reinterpret_cast<int*>(workspace.keys);
    slices.take(workspace.key_counts, batch * plan.chunks);
    slices.take(workspace.bounds, segments);
    slices.take(workspace.sorted, batch * plan.sorted);
    slices.take(workspace.boxes, candidates);
    slices.take(workspace.logits, candidates);
    slices.take(workspace.counts, segments);
    slices.take(workspace.mask, batch * plan.pairs * kTile);
    slices.take(workspace.kept, batch * plan.tiles);
    slices.take(workspace.done, batch);
    return slices.bytes();
}

}  // namespace edgercnn::rpn_proposals
