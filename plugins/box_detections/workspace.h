// Where BoxDetections keeps what: the sizes of its launch, and its scratch memory.
//
// B images, R rois per image, K foreground classes, D = max_detections. A candidate is a pair (roi, class) whose score
// is above the threshold.
#pragma once

#include <type_traits>

#include "box_detections/kernel.h"
#include "common/nms.h"
#include "common/rank.h"

namespace edgercnn::box_detections {  // names of its own: all ops share one library

// A class with up to kSharedCandidates candidates is worked off in shared memory alone; one with more keeps its boxes
// in a slot of the workspace, its keys, too, if they are more than shared memory holds.
constexpr int kSharedCandidates = 1280;
constexpr size_t kMostSharedBytes = kPlainSharedBytes - 1024;  // the kernel's own __shared__ variables take the rest
static_assert(2048 * sizeof(RankKey) + kSharedCandidates * (sizeof(Box) + sizeof(TileSet)) +
                      kSharedCandidates / kTile * sizeof(TileSet) <= kMostSharedBytes,
              "keys are padded to a power of two, 2048");

// Blocks share slots. With more rois than kSharedCandidates, at most so many blocks, each with many classes, are
// launched, so that slots stay few: they fill an H200, four blocks on each of its 132 multiprocessors.
constexpr int kMostBlocks = 512;

struct alignas(8) RowStatistics {
    float maximum, sum;  // of a roi's logits, and of exp(logit - maximum)
};

HOST_DEVICE size_t alignUp(size_t bytes) { return (bytes + 15) / 16 * 16; }

// Most classes of one roi that are above the threshold: scores sum to 1, plus their rounding.
inline int classesAbove(const BoxDetections& op) {
    const double most = op.score_threshold > 0.0f ? 1.01 / op.score_threshold : op.classes;
    return most < op.classes ? static_cast<int>(most) : op.classes;
}

struct Sizes {
    int blocks;             // of detectClasses
    int shared_candidates;  // whose keys and boxes lie in shared memory
    int shared_keys;        // whose keys lie in shared memory, a power of two
    int ranked_keys;        // an image's detections, a power of two
    bool ranked_in_shared;
    int list_keys;          // most detections of an image before the best D are taken
    size_t boxes_offset;    // in shared memory, behind the keys
    size_t shared_bytes;
    size_t slot_bytes;
    int slots;
};

HOST_DEVICE size_t boxBytes(int candidates) {
    return alignUp(static_cast<size_t>(candidates) * (sizeof(Box) + sizeof(TileSet)) +
                   divideUp(candidates, kTile) * sizeof(TileSet));
}

inline void sizeShared(const BoxDetections& op, Sizes& sizes) {
    sizes.shared_candidates = op.rois < kSharedCandidates ? op.rois : kSharedCandidates;
    sizes.boxes_offset = alignUp(nextPowerOfTwo(sizes.shared_candidates) * sizeof(RankKey));
    sizes.shared_bytes = sizes.boxes_offset + boxBytes(sizes.shared_candidates);
    const int most_detections = op.max_detections < sizes.list_keys ? op.max_detections : sizes.list_keys;
    sizes.ranked_keys = nextPowerOfTwo(most_detections);
    const size_t ranking = sizeof(SelectScratch) + sizes.ranked_keys * sizeof(RankKey);
    sizes.ranked_in_shared = ranking <= kMostSharedBytes;
    const size_t least_bytes = sizes.ranked_in_shared ? ranking : sizeof(SelectScratch);
    if (sizes.shared_bytes < least_bytes) sizes.shared_bytes = least_bytes;
    sizes.shared_keys = 1;
    while (2 * sizes.shared_keys * sizeof(RankKey) <= sizes.shared_bytes) sizes.shared_keys *= 2;
}

inline void sizeSlots(const BoxDetections& op, Sizes& sizes) {
    const int64_t pairs = static_cast<int64_t>(op.batch) * op.classes;
    const bool overflows = op.rois > sizes.shared_candidates;
    sizes.blocks = static_cast<int>(overflows && pairs > kMostBlocks ? kMostBlocks : pairs);
    const int64_t candidates = static_cast<int64_t>(op.rois) * classesAbove(op);
    const int64_t overflowing = op.batch * (candidates / (sizes.shared_candidates + 1));  // most classes that need one
    sizes.slots = static_cast<int>(!overflows ? 0 : overflowing < sizes.blocks ? overflowing : sizes.blocks);
    const int padded_keys = nextPowerOfTwo(op.rois);
    const size_t key_bytes = padded_keys > sizes.shared_keys ? padded_keys * sizeof(RankKey) : 0;
    sizes.slot_bytes = overflows ? key_bytes + boxBytes(op.rois) : 0;
}

inline Sizes sizesOf(const BoxDetections& op) {
    Sizes sizes{};
    const int of_class = op.max_detections < op.rois ? op.max_detections : op.rois;
    const int64_t of_classes = static_cast<int64_t>(of_class) * op.classes;
    const int64_t of_rois = static_cast<int64_t>(op.rois) * classesAbove(op);
    sizes.list_keys = static_cast<int>(of_classes < of_rois ? of_classes : of_rois);
    sizeShared(op, sizes);
    sizeSlots(op, sizes);
    return sizes;
}

struct Workspace {
    RowStatistics* statistics;  // [B][R]
    unsigned* listed;           // [B] keys in the image's list
    unsigned* finished;         // [B] classes of the image that are done
    unsigned* slots_taken;      // [1]
    RankKey* lists;             // [B][list_keys]
    RankKey* ranked;            // [B][ranked_keys], if shared memory has no room for them
    unsigned char* slots;       // [slots][slot_bytes]
};

// Lay the parts out from `base` on; returns the bytes they take.
inline size_t layOut(const BoxDetections& op, const Sizes& sizes, unsigned char* base, Workspace& workspace) {
    size_t used = 0;
    auto part = [&](auto*& pointer, size_t count) {
        pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(base + used);
        used += alignUp(count * sizeof(*pointer));
    };
    const size_t batch = op.batch;
    part(workspace.statistics, batch * op.rois);
    part(workspace.listed, batch);
    part(workspace.finished, batch);
    part(workspace.slots_taken, 1);
    part(workspace.lists, batch * sizes.list_keys);
    part(workspace.ranked, sizes.ranked_in_shared ? 0 : batch * sizes.ranked_keys);
    part(workspace.slots, sizes.slots * sizes.slot_bytes);
    return used;
}

}  // namespace edgercnn::box_detections
