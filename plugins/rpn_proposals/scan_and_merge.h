// RpnProposals, fourth kernel: NMS within every level, and the best of all levels.
//
// B images, L levels, R = post_nms_top_n rois; boxes of a level stand best first, in tiles of 64.
//
// A block per level and image follows the greedy order through the third kernel's bits. With no more tiles than warps,
// a warp has a tile, and its part of the mask in registers before the first tile is settled, so nothing is waited for
// but barriers; then every block places its own level's rois, once the image's other levels are through. With more
// tiles it goes by common/nms.h, and the block that ends an image's last level merges them all.
#pragma once

#include "rpn_proposals/merge.h"

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

// [B][L] in grid.x, [L][B] if not by warps; scanSharedBytes of dynamic shared memory.
template <int kThreads, bool kByWarps>
__global__ void __launch_bounds__(kThreads)
    scanAndMerge(GRID_CONSTANT(Plan) plan, Workspace workspace, Box* rois, int* num_rois) {
    const int block = blockIdx.x;  // by warps an image's blocks stand together, to run so
    const int index = kByWarps ? block % plan.levels : block / plan.batch;
    const int image = kByWarps ? block / plan.levels : block % plan.batch;
    const LevelScan scan(plan, workspace, index, image);
    if constexpr (kByWarps) {
        KeptTile* room = reinterpret_cast<KeptTile*>(dynamic_shared());
        const OwnBoxes<kThreads> own(plan, workspace, index, image);
        scanByWarps<kThreads>(scan, reinterpret_cast<TileSet*>(room + plan.tiles));
        mergeTogether<kThreads>(plan, workspace, index, image, own, room, rois, num_rois);
    } else {
        scanTiles<kThreads>(scan, reinterpret_cast<TileSet*>(dynamic_shared()));
        if (endsGroup(workspace.done + image, plan.levels))
            mergeLevels<kThreads>(plan, workspace, image, rois, num_rois);
    }
}

inline size_t scanSharedBytes(const Plan& plan) {
    const size_t room = plan.most_candidates <= kMostByWarps ? plan.tiles * sizeof(KeptTile) : 0;
    return divideUp(plan.most_candidates, kTile) * sizeof(TileSet) + room;
}

}  // namespace edgercnn::rpn_proposals
