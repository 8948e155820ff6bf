// RpnProposals, fourth kernel: NMS within every level, and the best of all levels.
//
// B images, L levels, R = post_nms_top_n rois; boxes of a level stand best first, in tiles of 64.
//
// A block per level and image follows the greedy order through the third kernel's bits; the block that ends an image's
// last level merges them all. With no more tiles than warps, a warp has a tile, and its part of the mask in registers
// before the first tile is settled, so that nothing is waited for but barriers; else it goes by common/nms.h.
#pragma once

#include "common/last_block.h"
#include "rpn_proposals/plan.h"

namespace edgercnn::rpn_proposals {

DEVICE TileSet tileSet(uint2 halves) { return static_cast<TileSet>(halves.y) << 32 | halves.x; }

// Where a level's NMS reads and writes, and what it needs to know.
struct LevelScan {
    const uint2* mask;
    KeptTile* kept;
    int count, most;   // boxes; those that are wanted
    int tiles;         // that the level has room for

    DEVICE LevelScan(const Plan& plan, const Workspace& workspace, int index, int image)
        : mask(workspace.mask + (static_cast<size_t>(image) * plan.pairs + plan.level[index].first_pair) * kTile),
          kept(workspace.kept + static_cast<size_t>(image) * plan.tiles + plan.level[index].first_tile),
          count(workspace.counts[image * plan.levels + index]), most(plan.post_nms_top_n),
          tiles(divideUp(plan.level[index].candidates, kTile)) {}
};

// NMS of a level with a tile for each warp at most: what stays to `scan.kept`, complete up to the tile in which `most`
// are reached. `kept_sets` is shared memory, one for each warp.
template <int kThreads>
DEVICE void scanByWarps(const LevelScan& scan, TileSet* kept_sets) {
    constexpr int kWarps = kThreads / kWarpSize;
    const int lane = threadIdx.x % kWarpSize, own = threadIdx.x / kWarpSize;
    uint2 low[kWarps], high[kWarps];  // by tile: which of its boxes suppress the lane's two of the own tile
    const uint2* words = scan.mask + static_cast<size_t>(pairOf(0, own)) * kTile + lane;
#pragma unroll
    for (int tile = 0; tile < kWarps; ++tile) {
        low[tile] = high[tile] = uint2{0, 0};
        if (tile > own || own >= scan.tiles) continue;
        low[tile] = words[tile * kTile];
        high[tile] = words[tile * kTile + kWarpSize];
    }
    bool low_alive = own * kTile + lane < scan.count, high_alive = own * kTile + lane + kWarpSize < scan.count;
    int kept_count = 0, kept_before = -1;
    TileSet own_kept = 0;
#pragma unroll
    for (int tile = 0; tile < kWarps; ++tile) {
        if (tile * kTile >= scan.count || kept_count >= scan.most) break;
        if (own == tile) {
            const TileSet alive = static_cast<TileSet>(__ballot_sync(kFullMask, high_alive)) << kWarpSize |
                                  __ballot_sync(kFullMask, low_alive);
            own_kept = settleTile(alive, tileSet(low[tile]), tileSet(high[tile]));
            kept_before = kept_count;
            if (lane == 0) kept_sets[tile] = own_kept;
        }
        __syncthreads();
        const TileSet kept = kept_sets[tile];
        kept_count += __popcll(kept);
        low_alive = low_alive && !(tileSet(low[tile]) & kept);
        high_alive = high_alive && !(tileSet(high[tile]) & kept);
    }
    if (lane == 0 && own < scan.tiles) {
        scan.kept[own] = {own_kept, static_cast<unsigned>(kept_before < 0 ? kept_count : kept_before)};
    }
    if (threadIdx.x == 0) scan.kept[scan.tiles] = {0, static_cast<unsigned>(kept_count)};
}

// A lane's words of the mask. A block with a warp for every tile reads each word one tile ahead of its use: a read
// takes as long as NMS takes for a tile. A lane has two boxes, so there are two words on the way.
struct MaskReader {
    const uint2* mask;  // of one level of one image
    bool ahead;         // read ahead
    int low_pair, high_pair;
    TileSet low, high;

    DEVICE TileSet word(int pair, int j) const {
        return tileSet(mask[static_cast<size_t>(pair) * kTile + j % kTile]);
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

// The same for any number of tiles. `alive` is shared memory, one for each tile.
template <int kThreads>
DEVICE void scanTiles(const LevelScan& scan, TileSet* alive) {
    __shared__ unsigned warp_sums[kWarpSize];
    const int tiles = divideUp(scan.count, kTile);
    const int own_tile = threadIdx.x / kWarpSize, own = own_tile * kTile + static_cast<int>(threadIdx.x % kWarpSize);
    MaskReader reader = {scan.mask, tiles <= kThreads / kWarpSize, -1, -1, 0, 0};
    if (reader.ahead && own_tile < tiles) {
        reader.prepare(pairOf(0, own_tile), own);
        reader.prepare(pairOf(0, own_tile), own + kWarpSize);
    }
    for (int tile = threadIdx.x; tile < tiles; tile += kThreads) {
        const int left = scan.count - tile * kTile;
        alive[tile] = left >= kTile ? ~0ull : (1ull << left) - 1;
    }
    __syncthreads();
    blockNms<kThreads>(
        scan.count, scan.most, alive, [&](int j) { return reader.suppressors(j); },
        [&](int tile, TileSet kept, int j) { return reader.suppressed(tile, kept, j); });

    unsigned kept_count = 0;
    for (int base = 0; base <= scan.tiles; base += kThreads) {
        const int tile = base + threadIdx.x;
        const TileSet kept = tile < tiles ? alive[tile] : 0;
        const unsigned size = __popcll(kept);
        const unsigned before = kept_count + blockExclusiveSum<kThreads>(size, warp_sums);
        if (tile <= scan.tiles) scan.kept[tile] = {kept, before};
        if (threadIdx.x == kThreads - 1) warp_sums[0] = before + size;
        __syncthreads();
        kept_count = warp_sums[0];
        __syncthreads();
    }
}

// How many boxes of the level are kept before number `bit` of this tile.
DEVICE int placeAmong(const KeptTile& tile, int bit) {
    return static_cast<int>(tile.before) + __popcll(tile.boxes & ((1ull << bit) - 1));
}

// The best R of the image's kept boxes, then zeros. A box's place is its place in its level plus the number of better
// ones that other levels keep; equal ones of lower levels count as better.
template <int kThreads>
DEVICE void mergeLevels(const Plan& plan, const Workspace& workspace, int image, Box* rois, int* num_rois) {
    constexpr int kAtOnce = kThreads == 1024 ? 2 : 4;  // boxes of a thread that are under way together
    const KeptTile* kept = workspace.kept + static_cast<size_t>(image) * plan.tiles;
    const Box* boxes = workspace.boxes + static_cast<size_t>(image) * plan.candidates;
    const int* better = workspace.better + static_cast<size_t>(image) * plan.levels * plan.candidates;
    rois += static_cast<size_t>(image) * plan.post_nms_top_n;
    for (int base = 0; base < plan.candidates; base += kAtOnce * kThreads) {
        KeptTile tiles[kAtOnce];
        Box own[kAtOnce];
        int places[kAtOnce], others[kAtOnce][kMaxLevels];
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k) {
            const int i = min(base + k * kThreads + static_cast<int>(threadIdx.x), plan.candidates - 1);
            int index = plan.levels - 1;
            while (i < plan.level[index].first_candidate) --index;
            places[k] = i - plan.level[index].first_candidate;
            tiles[k] = kept[plan.level[index].first_tile + places[k] / kTile];
        }
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k) {
            const int i = base + k * kThreads + static_cast<int>(threadIdx.x), bit = places[k] % kTile;
            const bool stays = i < plan.candidates && (tiles[k].boxes >> bit & 1);
            places[k] = stays ? placeAmong(tiles[k], bit) : -1;
            if (!stays) continue;
            own[k] = boxes[i];
#pragma unroll
            for (int other = 0; other < kMaxLevels; ++other) {
                others[k][other] = other < plan.levels ? better[static_cast<size_t>(other) * plan.candidates + i] : 0;
            }
        }
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k) {
            if (places[k] < 0) continue;
            int rank = places[k];
#pragma unroll
            for (int other = 0; other < kMaxLevels; ++other) {  // none is better in the box's own level
                if (other >= plan.levels) break;
                const int count = others[k][other];
                rank += placeAmong(kept[plan.level[other].first_tile + count / kTile], count % kTile);
            }
            if (rank < plan.post_nms_top_n) rois[rank] = own[k];
        }
    }
    int total = 0;
    for (int index = 0; index < plan.levels; ++index) {
        const Level& level = plan.level[index];
        total += kept[level.first_tile + divideUp(level.candidates, kTile)].before;
    }
    for (int i = total + threadIdx.x; i < plan.post_nms_top_n; i += kThreads) rois[i] = Box{};
    if (threadIdx.x == 0) num_rois[image] = min(total, plan.post_nms_top_n);
}

// [L][B] in grid.x; scanSharedBytes of dynamic shared memory.
template <int kThreads, bool kByWarps>
__global__ void __launch_bounds__(kThreads)
    scanAndMerge(GRID_CONSTANT(Plan) plan, Workspace workspace, Box* rois, int* num_rois) {
    const int index = blockIdx.x / plan.batch, image = blockIdx.x % plan.batch;
    const LevelScan scan(plan, workspace, index, image);
    TileSet* sets = reinterpret_cast<TileSet*>(dynamic_shared());
    if (kByWarps) {
        scanByWarps<kThreads>(scan, sets);
    } else {
        scanTiles<kThreads>(scan, sets);
    }
    if (endsGroup(workspace.done + image, plan.levels)) mergeLevels<kThreads>(plan, workspace, image, rois, num_rois);
}

inline size_t scanSharedBytes(const Plan& plan) { return divideUp(plan.most_candidates, kTile) * sizeof(TileSet); }

}  // namespace edgercnn::rpn_proposals
