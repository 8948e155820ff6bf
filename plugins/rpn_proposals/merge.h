// RpnProposals, part of the fourth kernel: the best of all levels.
//
// B images, L levels, R = post_nms_top_n rois; boxes of a level stand best first, in tiles of 64.
#pragma once

#include "common/last_block.h"
#include "rpn_proposals/plan.h"

namespace edgercnn::rpn_proposals {

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

// The levels of an image whose rois this block is to place, as bits, and kLastBit if it is the image's last. All
// threads must call; unless the result is 0, they see then what all of the image's blocks have written.
//
// A block waits for the others a while, as they end at about the same time, and then places its own level's rois. If
// they do not - nothing says that they run side by side - it leaves its level to the last. Bits 0 to 7 of `done` count
// the levels that are through; the bits above are those left to the last.
constexpr unsigned kLastBit = 1u << kMaxLevels;
constexpr int kLeftShift = 8;
#ifdef __CUDA_ARCH__
constexpr int kPolls = 64;  // each takes as long as a read
#else
constexpr int kPolls = 1;  // no other block runs meanwhile
#endif

DEVICE unsigned levelsToPlace(unsigned* done, int index, int levels) {
    __shared__ unsigned shared;
    __syncthreads();
    if (threadIdx.x == 0) {
        constexpr unsigned kCount = (1u << kLeftShift) - 1;
        const unsigned own = 1u << index, all = levels;
        __threadfence();
        unsigned state = atomicAdd(done, 1u);
        if ((state & kCount) == all - 1) {
            shared = own | state >> kLeftShift | kLastBit;
        } else {
            state = 0;
#pragma unroll 1
            for (int i = 0; i < kPolls && (state & kCount) != all; ++i) state = *const_cast<volatile unsigned*>(done);
            if ((state & kCount) != all) state = atomicOr(done, own << kLeftShift);
            shared = (state & kCount) == all ? own : 0;
        }
        __threadfence();
    }
    __syncthreads();
    return shared;
}

// Boxes of a level that a thread has, kOwn at most in all, and how many of every other level come before each. Read
// before it is known which boxes stay.
template <int kThreads>
struct OwnBoxes {
    static constexpr int kOwn = kThreads == 256 ? 1 : 2;
    static_assert(kFewCandidates <= 256 && kMostByWarps <= 2 * 512, "a level's boxes are the threads'");
    Box boxes[kOwn];
    int others[kOwn][kMaxLevels];

    DEVICE OwnBoxes(const Plan& plan, const Workspace& workspace, int index, int image) {
        const int* better = workspace.better + static_cast<size_t>(image) * plan.levels * plan.candidates;
#pragma unroll
        for (int k = 0; k < kOwn; ++k) {
            const int place = min(k * kThreads + static_cast<int>(threadIdx.x), plan.level[index].candidates - 1);
            const int i = plan.level[index].first_candidate + place;
            boxes[k] = workspace.boxes[static_cast<size_t>(image) * plan.candidates + i];
#pragma unroll
            for (int other = 0; other < kMaxLevels; ++other) {
                const int level = min(other, plan.levels - 1);
                others[k][other] = better[static_cast<size_t>(level) * plan.candidates + i];
            }
        }
    }

    // The rois among them. `kept` is of the image.
    DEVICE void place(const Plan& plan, int index, const KeptTile* kept, Box* rois) const {
#pragma unroll
        for (int k = 0; k < kOwn; ++k) {
            const int place = k * kThreads + static_cast<int>(threadIdx.x), bit = place % kTile;
            if (place >= plan.level[index].candidates) continue;
            const KeptTile tile = kept[plan.level[index].first_tile + place / kTile];
            if (!(tile.boxes >> bit & 1)) continue;
            int rank = placeAmong(tile, bit);
#pragma unroll
            for (int other = 0; other < kMaxLevels; ++other) {
                const bool counts = other < plan.levels && other != index;
                const int count = counts ? others[k][other] : 0, first = counts ? plan.level[other].first_tile : 0;
                const int before = placeAmong(kept[first + count / kTile], count % kTile);
                rank += counts ? before : 0;
            }
            if (rank < plan.post_nms_top_n) rois[rank] = boxes[k];
        }
    }
};

// The image's rois, of the levels that fall to this block. `room` is shared memory for plan.tiles.
template <int kThreads>
DEVICE void mergeTogether(const Plan& plan, const Workspace& workspace, int index, int image,
                          const OwnBoxes<kThreads>& own, KeptTile* room, Box* rois, int* num_rois) {
    const unsigned levels = levelsToPlace(workspace.done + image, index, plan.levels);
    if (levels == 0) return;
    const KeptTile* kept = workspace.kept + static_cast<size_t>(image) * plan.tiles;
#pragma unroll 1
    for (int i = threadIdx.x; i < plan.tiles; i += kThreads) room[i] = kept[i];
    __syncthreads();
    rois += static_cast<size_t>(image) * plan.post_nms_top_n;
    own.place(plan, index, room, rois);
    if (!(levels & kLastBit)) return;
    for (int other = 0; other < plan.levels; ++other) {
        if (other == index || !(levels >> other & 1)) continue;
        OwnBoxes<kThreads>(plan, workspace, other, image).place(plan, other, room, rois);
    }
    int total = 0;
    for (int level = 0; level < plan.levels; ++level) {
        total += room[plan.level[level].first_tile + divideUp(plan.level[level].candidates, kTile)].before;
    }
    for (int i = total + threadIdx.x; i < plan.post_nms_top_n; i += kThreads) rois[i] = Box{};
    if (threadIdx.x == 0) num_rois[image] = min(total, plan.post_nms_top_n);
}

}  // namespace edgercnn::rpn_proposals
