// RpnProposals, third and fourth kernel: NMS within every level, and the best of all levels.
//
// B images, L levels, R = post_nms_top_n rois; boxes of a level stand best first, in tiles of 64.
//
// Whether one box suppresses another does not depend on the others, so the third kernel finds that for all pairs of a
// level, by as many blocks as there are pairs of tiles: one bit each. The fourth follows the greedy order through those
// bits, a block per level and image (common/nms.h); the block that ends an image's last level merges them all.
#pragma once

#include "common/last_block.h"
#include "rpn_proposals/plan.h"

namespace edgercnn::rpn_proposals {

constexpr int kMaskThreads = 2 * kTile;  // two for each box of the second tile: a thread tests half of the first tile

constexpr int kMaskWidth = kTile / 2;

// Which of 32 boxes suppress this one. First by products alone, without a branch; then the few that take a quotient.
DEVICE unsigned suppressorsAmong(const Box* boxes, const float* areas, unsigned allowed, Box box, float area,
                                 float threshold) {
    unsigned certain = 0, open = 0;
#pragma unroll 8
    for (int i = 0; i < kMaskWidth; ++i) {
        const Verdict verdict = verdictOf(overlapOf(boxes[i], areas[i], box, area), threshold);
        certain |= static_cast<unsigned>(verdict.yes) << i;
        open |= static_cast<unsigned>(!verdict.yes && !verdict.no) << i;
    }
    certain &= allowed;
    for (open &= allowed; open != 0; open &= open - 1) {
        const int i = __ffs(open) - 1;
        if (suppresses(boxes[i], areas[i], box, area, threshold)) certain |= 1u << i;
    }
    return certain;
}

// The mask of one pair of tiles; [pairs of all levels, B] in grid.x.
__global__ void __launch_bounds__(kMaskThreads)
    suppressionMask(GRID_CONSTANT(Plan) plan, float threshold, Workspace workspace) {
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

    const int count = workspace.counts[image * plan.levels + index];
    if (column * kTile >= count) return;
    const Box* all = workspace.boxes + static_cast<size_t>(image) * plan.candidates + level.first_candidate;
    const int lane = threadIdx.x % kTile, half = threadIdx.x / kTile;
    if (half == 0) {
        const int i = tile * kTile + lane;
        boxes[lane] = i < count ? all[i] : Box{};
        areas[lane] = boxArea(boxes[lane]);
    }
    const int j = column * kTile + lane;
    const Box box = j < count ? all[j] : Box{};
    const float area = boxArea(box);
    __syncthreads();
    const int first = half * kMaskWidth;
    const int before = tile == column ? lane - first : kMaskWidth;  // how many of these come before this box
    const unsigned allowed = before >= kMaskWidth ? ~0u : before <= 0 ? 0u : (1u << before) - 1;
    const unsigned bits = suppressorsAmong(boxes + first, areas + first, allowed, box, area, threshold);
    uint2& word = workspace.mask[(static_cast<size_t>(image) * plan.pairs + pair_of_image) * kTile + lane];
    (half == 0 ? word.x : word.y) = bits;
}

// A lane's words of the mask. A block with a warp for every tile reads each word one tile ahead of its use: a read
// takes as long as NMS takes for a tile. A lane has two boxes, so there are two words on the way.
struct MaskReader {
    const uint2* mask;  // of one level of one image
    bool ahead;         // read ahead
    int low_pair, high_pair;
    TileSet low, high;

    DEVICE TileSet word(int pair, int j) const {
        const uint2 halves = mask[static_cast<size_t>(pair) * kTile + j % kTile];
        return static_cast<TileSet>(halves.y) << 32 | halves.x;
    }
    DEVICE void prepare(int pair, int j) {
        if (j % kTile < kWarpSize) {
            low_pair = pair;
            low = word(pair, j);
        } else {
            high_pair = pair;
            high = word(pair, j);
        }
    }
    DEVICE TileSet take(int pair, int j) const {
        const bool is_low = j % kTile < kWarpSize;
        return pair == (is_low ? low_pair : high_pair) ? (is_low ? low : high) : word(pair, j);
    }
    DEVICE TileSet suppressors(int j) const { return take(pairOf(j / kTile, j / kTile), j); }
    DEVICE bool suppressed(int tile, TileSet kept, int j) {
        const int pair = pairOf(tile, j / kTile);
        const TileSet suppressors = take(pair, j);
        if (ahead) prepare(pair + 1, j);  // there is one: the last word of a column is the box's own tile's
        return (suppressors & kept) != 0;
    }
};

struct MergeShared {
    unsigned warp_sums[kWarpSize];
    int total;
    int count[kMaxLevels];  // rois of each level, zero beyond L
    int start[kMaxLevels];  // rois of the levels before
    int first[kMaxLevels];  // where its logits begin
};

// NMS of one level of one image: which of `count` boxes stay, to the image's lists, best first, R at most.
// `alive` and `before` are shared memory, one each for every tile.
template <int kThreads>
DEVICE void suppressLevel(const Plan& plan, const Workspace& workspace, int index, int image, TileSet* alive,
                          unsigned* before, MergeShared& shared) {
    const Level& level = plan.level[index];
    const int count = workspace.counts[image * plan.levels + index], tiles = divideUp(count, kTile);
    const int own_tile = threadIdx.x / kWarpSize, own = own_tile * kTile + static_cast<int>(threadIdx.x % kWarpSize);
    const uint2* mask = workspace.mask + (static_cast<size_t>(image) * plan.pairs + level.first_pair) * kTile;
    MaskReader reader = {mask, tiles <= kThreads / kWarpSize, -1, -1, 0, 0};
    if (reader.ahead && own_tile < tiles) {
        reader.prepare(pairOf(0, own_tile), own);
        reader.prepare(pairOf(0, own_tile), own + kWarpSize);
    }
    for (int tile = threadIdx.x; tile < tiles; tile += kThreads) {
        const int left = count - tile * kTile;
        alive[tile] = left >= kTile ? ~0ull : (1ull << left) - 1;
    }
    __syncthreads();
    blockNms<kThreads>(
        count, plan.post_nms_top_n, alive, [&](int j) { return reader.suppressors(j); },
        [&](int tile, TileSet kept, int j) { return reader.suppressed(tile, kept, j); });

    int kept_count = 0;
    for (int base = 0; base < tiles; base += kThreads) {
        const int tile = base + threadIdx.x;
        const unsigned size = tile < tiles ? __popcll(alive[tile]) : 0;
        const unsigned place = kept_count + blockExclusiveSum<kThreads>(size, shared.warp_sums);
        if (tile < tiles) before[tile] = place;
        if (threadIdx.x == kThreads - 1) shared.total = place + size;
        __syncthreads();
        kept_count = shared.total;  // written again only behind the barriers of the next sum
    }
    const size_t first = static_cast<size_t>(image) * plan.candidates + level.first_candidate;
    for (int i = threadIdx.x; i < count; i += kThreads) {
        const TileSet kept = alive[i / kTile];
        const int place = before[i / kTile] + __popcll(kept & ((1ull << i % kTile) - 1));
        if (!(kept >> i % kTile & 1) || place >= plan.post_nms_top_n) continue;
        workspace.kept[first + place] = i;
        workspace.kept_logits[first + place] = workspace.logits[first + i];
    }
    if (threadIdx.x == 0) workspace.kept_counts[image * plan.levels + index] = min(kept_count, plan.post_nms_top_n);
}

// How many rois of the image come before the one at `place` of level `own`: all better ones, and equal ones of lower
// levels. A binary search in each other level, all levels' steps side by side.
DEVICE int rankAmongLevels(const float* logits, const MergeShared& shared, int own, int place, float logit, int step) {
    int better[kMaxLevels] = {};
    for (; step > 0; step /= 2) {
#pragma unroll
        for (int other = 0; other < kMaxLevels; ++other) {
            const int next = better[other] + step;
            if (next > shared.count[other]) continue;
            const float found = logits[shared.first[other] + next - 1];
            if (found > logit || (found == logit && other < own)) better[other] = next;
        }
    }
    int rank = place;
#pragma unroll
    for (int other = 0; other < kMaxLevels; ++other) rank += other == own ? 0 : better[other];
    return rank;
}

// The best R of the image's rois, then zeros. `room` is shared memory for that many logits.
template <int kThreads>
DEVICE void mergeLevels(const Plan& plan, const Workspace& workspace, int image, float* room, int room_size,
                        MergeShared& shared, Box* rois, int* num_rois) {
    if (threadIdx.x == 0) {
        int total = 0;
        for (int index = 0; index < kMaxLevels; ++index) {
            const int count = index < plan.levels ? workspace.kept_counts[image * plan.levels + index] : 0;
            shared.count[index] = count;
            shared.start[index] = total;
            total += count;
        }
        for (int index = 0; index < kMaxLevels; ++index) {
            shared.first[index] = total <= room_size ? shared.start[index] : plan.level[index].first_candidate;
        }
    }
    __syncthreads();
    const size_t first = static_cast<size_t>(image) * plan.candidates;
    const float* logits = workspace.kept_logits + first;
    const int total = shared.start[kMaxLevels - 1] + shared.count[kMaxLevels - 1];
    int longest = 0;
    for (int index = 0; index < plan.levels; ++index) longest = max(longest, shared.count[index]);
    if (total <= room_size) {
        for (int index = 0; index < plan.levels; ++index) {
            const float* source = logits + plan.level[index].first_candidate;
            for (int i = threadIdx.x; i < shared.count[index]; i += kThreads) room[shared.start[index] + i] = source[i];
        }
        logits = room;
        __syncthreads();
    }
    const int first_step = nextPowerOfTwo(longest);
    rois += static_cast<size_t>(image) * plan.post_nms_top_n;
    for (int i = threadIdx.x; i < total; i += kThreads) {
        int own = plan.levels - 1;
        while (i < shared.start[own]) --own;
        const int place = i - shared.start[own];
        const float logit = logits[shared.first[own] + place];
        const int rank = rankAmongLevels(logits, shared, own, place, logit, first_step);
        if (rank >= plan.post_nms_top_n) continue;
        const size_t level_first = first + plan.level[own].first_candidate;
        rois[rank] = workspace.boxes[level_first + workspace.kept[level_first + place]];
    }
    for (int i = total + threadIdx.x; i < plan.post_nms_top_n; i += kThreads) rois[i] = Box{};
    if (threadIdx.x == 0) num_rois[image] = min(total, plan.post_nms_top_n);
}

// [L][B] in grid.x; `shared_bytes` of dynamic shared memory, at least mergeSharedBytes.
template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    scanAndMerge(GRID_CONSTANT(Plan) plan, Workspace workspace, int shared_bytes, Box* rois, int* num_rois) {
    __shared__ MergeShared shared;
    const int index = blockIdx.x / plan.batch, image = blockIdx.x % plan.batch;
    TileSet* alive = reinterpret_cast<TileSet*>(dynamic_shared());
    unsigned* before = reinterpret_cast<unsigned*>(alive + divideUp(plan.most_candidates, kTile));
    suppressLevel<kThreads>(plan, workspace, index, image, alive, before, shared);
    if (!endsGroup(workspace.done + image, plan.levels)) return;
    float* room = reinterpret_cast<float*>(dynamic_shared());
    mergeLevels<kThreads>(plan, workspace, image, room, shared_bytes / sizeof(float), shared, rois, num_rois);
}

// Dynamic shared memory of scanAndMerge: for its tiles, then for the logits of all levels' rois if that is possible.
inline size_t scanSharedBytes(const Plan& plan) {
    const size_t tiles = divideUp(plan.most_candidates, kTile) * (sizeof(TileSet) + sizeof(unsigned));
    size_t rois = 0;
    for (int i = 0; i < plan.levels; ++i) rois += min(plan.level[i].candidates, plan.post_nms_top_n);
    const size_t limit = kPlainSharedBytes - sizeof(MergeShared) - 64;
    return max(tiles, min(rois * sizeof(float), limit));
}

}  // namespace edgercnn::rpn_proposals
