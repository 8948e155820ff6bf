// Exact greedy NMS of boxes in descending priority by one block of threads, 64 boxes (a tile) at a time.
//
// Whether a box stays depends on all better ones, but inside a tile the answer is a fixed point that a warp finds with
// a few votes: begin with all that are alive; drop those that one of the present set suppresses; repeat until nothing
// changes. Box j is right once its betters are, so a chain of n suppressions takes n votes, three or four as a rule.
// Then every warp drops from its own later tiles what the tile's kept boxes suppress. One barrier per tile, where a
// loop over boxes takes one per kept box.
#pragma once

#include "common/boxes.h"

namespace edgercnn {

constexpr int kTile = 64;  // boxes; a warp's lane has two

using TileSet = unsigned long long;  // of boxes of one tile, bit i = box 64 * tile + i

// Which of a tile's `candidates` stay. `before_first` and `before_second` are the sets of its boxes that would suppress
// the lane's two, number lane and lane + 32. The same for all lanes.
DEVICE TileSet settleTile(TileSet candidates, TileSet before_first, TileSet before_second) {
    const int lane = threadIdx.x % kWarpSize;
    TileSet kept = candidates, last;
    do {
        last = kept;
        const unsigned low = __ballot_sync(kFullMask, (candidates >> lane & 1) && !(before_first & last));
        const unsigned high =
            __ballot_sync(kFullMask, (candidates >> (lane + kWarpSize) & 1) && !(before_second & last));
        kept = static_cast<TileSet>(high) << kWarpSize | low;
    } while (kept != last);
    return kept;
}

// Thin `alive` to the boxes that stay.
//
// alive: shared memory, divideUp(count, 64) words; in: the candidates, behind a barrier; out: those kept. Complete up
//     to the tile in which `most` are reached, zero after it: at least the best `most` of those that stay are in it.
// suppressors(j): of a candidate, the set of boxes before j in its own tile that would suppress it.
// suppressed(tile, kept, j): whether one of `kept`, boxes of an earlier tile, suppresses j.
// Returns the number of boxes in `alive`. All threads of the block must call; ends with a barrier.
template <int kThreads, typename Suppressors, typename Suppressed>
DEVICE int blockNms(int count, int most, TileSet* alive, Suppressors suppressors, Suppressed suppressed) {
    constexpr int kWarps = kThreads / kWarpSize;
    const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
    const int tiles = (count + kTile - 1) / kTile;
    int kept_count = 0;
    for (int tile = 0; tile < tiles; ++tile) {
        if (warp == tile % kWarps) {
            const TileSet candidates = alive[tile];
            const int first = tile * kTile + lane, second = first + kWarpSize;
            const TileSet before_first = candidates >> lane & 1 ? suppressors(first) : 0;
            const TileSet before_second = candidates >> (lane + kWarpSize) & 1 ? suppressors(second) : 0;
            const TileSet kept = settleTile(candidates, before_first, before_second);
            if (lane == 0) alive[tile] = kept;
        }
        __syncthreads();
        const TileSet kept = alive[tile];
        kept_count += __popcll(kept);
        if (kept_count >= most) {  // enough: the rest stays out
            for (int later = tile + 1 + threadIdx.x; later < tiles; later += kThreads) alive[later] = 0;
            break;
        }
        if (kept == 0) continue;
        for (int later = warp; later < tiles; later += kWarps) {  // the tiles that this warp will settle
            if (later <= tile) continue;
            const TileSet candidates = alive[later];
            const int first = later * kTile + lane, second = first + kWarpSize;
            const bool drop_first = (candidates >> lane & 1) && suppressed(tile, kept, first);
            const bool drop_second = (candidates >> (lane + kWarpSize) & 1) && suppressed(tile, kept, second);
            const TileSet low = __ballot_sync(kFullMask, drop_first), high = __ballot_sync(kFullMask, drop_second);
            if (lane == 0) alive[later] = candidates & ~(high << kWarpSize | low);
            __syncwarp();
        }
    }
    __syncthreads();
    return kept_count;
}

}  // namespace edgercnn
