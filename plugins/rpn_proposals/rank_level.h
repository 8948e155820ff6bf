// RpnProposals, part of the second kernel: the candidates of a level, best first, by one block.
//
// B images, L levels, A anchors per cell, N candidates of a level.
//
// The threads hold the level's keys in registers: those of a small level come straight from the map, those of a large
// one from the first kernel. They are sorted by buckets: 2048 that divide the range of their logits evenly; keys of one
// bucket, a few as a rule, are compared with one another. That takes some ten barriers; sorting pairwise takes over 50.
// Where it does not go - more keys than the registers hold, many equal logits, outliers that leave all others to one
// bucket, or a sample that misled the first kernel - the exact selection takes the N best and they are sorted pairwise.
// The result is the same: keys are unique.
#pragma once

#include "rpn_proposals/select.h"

namespace edgercnn::rpn_proposals {

constexpr int kCrowd = 64;  // keys of one bucket are that many at most

template <int kThreads>
struct RankShared {
    RankKey keys[kRankRoom<kThreads>];
    SelectScratch scratch;
    unsigned starts[kThreads];  // of each chunk's keys among all that are handed on
    unsigned least, greatest;   // upper halves of keys
    unsigned total, bucketed;   // keys, and those of them in buckets that the best `wanted` touch
    unsigned counter;
};

// Buckets of equal width between two logits, from the greatest down.
struct Buckets {
    float greatest, scale;

    // `least` and `greatest` are upper halves of keys.
    DEVICE Buckets(unsigned least, unsigned greatest) : greatest(keyScore(static_cast<RankKey>(greatest) << 32)) {
        const float range = this->greatest - keyScore(static_cast<RankKey>(least) << 32);
        scale = range > 1e-30f ? (kBuckets - 1) / range : 0.0f;  // 0 for an infinite range, too
    }
    // Never less for a lesser key. fminf takes NaN, which 0 * infinity is, to the last bucket.
    DEVICE int operator()(RankKey key) const {
        return static_cast<int>(fminf((greatest - keyScore(key)) * scale, kBuckets - 1));
    }
};

// Least and greatest logit of all threads' keys to shared memory, as upper halves of keys; ends with a barrier.
template <int kThreads>
DEVICE void boundLogits(const RankKey (&keys)[kHeldKeys<kThreads>], RankShared<kThreads>& shared) {
    if (threadIdx.x == 0) {
        shared.least = ~0u;
        shared.greatest = 0;
    }
    __syncthreads();
    unsigned least = ~0u, greatest = 0;
#pragma unroll
    for (int k = 0; k < kHeldKeys<kThreads>; ++k) {
        if (keys[k] == kNoCandidate) continue;
        least = min(least, static_cast<unsigned>(keys[k] >> 32));
        greatest = max(greatest, static_cast<unsigned>(keys[k] >> 32));
    }
    for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
        least = min(least, __shfl_xor_sync(kFullMask, least, offset));
        greatest = max(greatest, __shfl_xor_sync(kFullMask, greatest, offset));
    }
    if (threadIdx.x % kWarpSize == 0) {
        atomicMin(&shared.least, least);
        atomicMax(&shared.greatest, greatest);
    }
    __syncthreads();
}

// The histogram to where each bucket's keys begin; `total` and `bucketed` to shared memory. False if a bucket that the
// best `wanted` touch is too large.
template <int kThreads>
DEVICE bool startBuckets(int wanted, RankShared<kThreads>& shared) {
    constexpr int kPerThread = kBuckets / kThreads;
    unsigned* const own = shared.scratch.histogram + threadIdx.x * kPerThread;
    unsigned sum = 0;
    for (int i = 0; i < kPerThread; ++i) sum += own[i];
    unsigned start = blockExclusiveSum<kThreads>(sum, shared.scratch.counts);
    bool crowded = false;
    for (int i = 0; i < kPerThread; ++i) {
        const unsigned size = own[i], end = start + size;
        own[i] = start;
        if (start < static_cast<unsigned>(wanted)) {
            crowded |= size > kCrowd;
            if (end >= static_cast<unsigned>(wanted)) shared.bucketed = end;
        }
        start = end;
    }
    if (threadIdx.x == kThreads - 1) {
        shared.total = start;
        if (start < static_cast<unsigned>(wanted)) shared.bucketed = start;
    }
    return !__syncthreads_or(crowded);
}

// The best `wanted` of all threads' keys, or all if there are fewer, descending, to shared.keys; their number to
// `found`. kNoCandidate is no key. False, and nothing else, if a bucket is too large. `wanted` is at most the room for
// keys less kCrowd. Ends with a barrier.
template <int kThreads>
DEVICE bool sortByBuckets(const RankKey (&keys)[kHeldKeys<kThreads>], int wanted, RankShared<kThreads>& shared,
                          int& found) {
    unsigned* const starts = shared.scratch.histogram;
    for (int i = threadIdx.x; i < kBuckets; i += kThreads) starts[i] = 0;
    boundLogits<kThreads>(keys, shared);
    const Buckets bucketOf(shared.least, shared.greatest);
    unsigned slots[kHeldKeys<kThreads>], places[kHeldKeys<kThreads>];  // bucket, and with it the place in it
#pragma unroll
    for (int k = 0; k < kHeldKeys<kThreads>; ++k) {  // none of these additions waits for the one before
        slots[k] = bucketOf(keys[k]);
        places[k] = keys[k] != kNoCandidate ? atomicAdd(&starts[slots[k]], 1u) : 0;
    }
#pragma unroll
    for (int k = 0; k < kHeldKeys<kThreads>; ++k) slots[k] += places[k] * kBuckets;
    __syncthreads();
    if (!startBuckets<kThreads>(wanted, shared)) return false;
#pragma unroll
    for (int k = 0; k < kHeldKeys<kThreads>; ++k) {
        if (keys[k] == kNoCandidate) continue;
        const unsigned start = starts[slots[k] % kBuckets];
        if (start < static_cast<unsigned>(wanted)) shared.keys[start + slots[k] / kBuckets] = keys[k];
    }
    __syncthreads();
    constexpr int kRounds = kRankRoom<kThreads> / kThreads;
    const unsigned bucketed = shared.bucketed, total = shared.total;
    RankKey own[kRounds];
    unsigned ranks[kRounds];
#pragma unroll
    for (int k = 0; k < kRounds; ++k) {
        const unsigned i = k * kThreads + threadIdx.x;
        if (i >= bucketed) break;
        own[k] = shared.keys[i];
        const int bucket = bucketOf(own[k]);
        const unsigned end = bucket + 1 < kBuckets ? starts[bucket + 1] : total;
        ranks[k] = starts[bucket];
        for (unsigned other = starts[bucket]; other < end; ++other) ranks[k] += shared.keys[other] > own[k];
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kRounds; ++k) {
        if (k * kThreads + threadIdx.x >= bucketed) break;
        shared.keys[ranks[k]] = own[k];
    }
    __syncthreads();
    found = min(static_cast<int>(total), wanted);
    return true;
}

// Sort `keys` in global memory, a power of two of them, kRankRoom or more: bitonic, strides below kRankRoom in shared
// memory. A part that must ascend is sorted descending and written back in reverse.
template <int kThreads>
DEVICE void sortLarge(RankKey* keys, int size, RankKey* room) {
    constexpr int kRoom = kRankRoom<kThreads>;
    for (int width = kRoom; width <= size; width *= 2) {
        for (int stride = width / 2; stride >= kRoom; stride /= 2) {
            for (int pair = threadIdx.x; pair < size / 2; pair += kThreads) {
                const int low = 2 * pair - (pair & (stride - 1)), high = low + stride;
                const RankKey first = keys[low], second = keys[high];
                const bool descending = (low & width) == 0;
                if ((first < second) == descending) {
                    keys[low] = second;
                    keys[high] = first;
                }
            }
            __syncthreads();
        }
        for (int part = 0; part < size; part += kRoom) {
            for (int i = threadIdx.x; i < kRoom; i += kThreads) room[i] = keys[part + i];
            __syncthreads();
            blockSortDescending<kThreads>(room, kRoom, width == kRoom ? 2 : kRoom);
            const int flip = (part & width) == 0 ? 0 : kRoom - 1;
            for (int i = threadIdx.x; i < kRoom; i += kThreads) keys[part + i] = room[i ^ flip];
            __syncthreads();
        }
    }
}

// Fill `keys` up to a power of two, at least `least_size`, with kNoCandidate; returns that size. Ends with a barrier.
template <int kThreads>
DEVICE int padded(RankKey* keys, int count, int least_size) {
    const int size = max(nextPowerOfTwo(count), least_size);
    for (int i = count + threadIdx.x; i < size; i += kThreads) keys[i] = kNoCandidate;
    __syncthreads();
    return size;
}

// The `wanted` greatest of the keys that `keyAt(i)` gives for i < size, or all if there are fewer, descending, to
// shared memory or to `large`; their number to `found`. `large` has room for nextPowerOfTwo(wanted) keys if that is
// above kRankRoom. Slow, whatever the keys.
template <int kThreads, typename KeyAt>
DEVICE const RankKey* sortExactly(KeyAt keyAt, int size, int wanted, RankKey* large, RankShared<kThreads>& shared,
                                  int& found) {
    constexpr int kRoom = kRankRoom<kThreads>;
    const bool fits = wanted <= kRoom;
    RankKey* const keys = fits ? shared.keys : large;
    const RankKey least = blockSelect<kThreads>(keyAt, size, wanted, shared.scratch);
    found = blockCollect<kThreads>(keyAt, size, least, keys, wanted, &shared.counter);
    const int padded_size = padded<kThreads>(keys, found, fits ? 1 : kRoom);
    if (fits) {
        blockSortDescending<kThreads>(keys, padded_size);
    } else {
        sortLarge<kThreads>(keys, padded_size, shared.keys);
    }
    return keys;
}

// What the chunks of a level handed on, [chunks][chunk_keys], of which the first counts[chunk] are keys.
struct HandedOn {
    const RankKey* keys;
    const unsigned* counts;
    RankKey bound;  // what they had to reach
};

// The number of keys that were handed on; all of them to the threads' registers if these hold them, which `held` says.
template <int kThreads>
DEVICE int holdHandedOn(const HandedOn& handed, const Level& level, RankKey (&keys)[kHeldKeys<kThreads>],
                        RankShared<kThreads>& shared, bool& held) {
    const int own = threadIdx.x;
    unsigned count = 0;  // of one chunk, if they are no more than threads
    for (int chunk = own; chunk < level.chunks; chunk += kThreads) count += handed.counts[chunk];
    const unsigned start = blockExclusiveSum<kThreads>(count, shared.scratch.counts);
    shared.starts[own] = start;
    if (own == kThreads - 1) shared.total = start + count;
    __syncthreads();
    const int total = shared.total;
    held = level.chunks <= kThreads && total <= kThreads * kHeldKeys<kThreads>;
    if (!held) return total;
    int chunks[kHeldKeys<kThreads>] = {};  // for each key the last that begins at it or before; all searched together
    const auto number = [&](int k) { return max(min(k * kThreads + own, total - 1), 0); };
    for (int step = nextPowerOfTwo(level.chunks) / 2; step > 0; step /= 2) {
#pragma unroll
        for (int k = 0; k < kHeldKeys<kThreads>; ++k) {
            const int next = min(chunks[k] + step, level.chunks - 1);
            if (shared.starts[next] <= static_cast<unsigned>(number(k))) chunks[k] = next;
        }
    }
#pragma unroll
    for (int k = 0; k < kHeldKeys<kThreads>; ++k) {
        const int place = number(k) - static_cast<int>(shared.starts[chunks[k]]);
        const RankKey key = handed.keys[static_cast<size_t>(chunks[k]) * level.chunk_keys + place];
        keys[k] = k * kThreads + own < total ? key : kNoCandidate;
    }
    return total;
}

// The best N of a level, or all if there are fewer, descending, in shared memory or in `large`; their number to
// `found`.
template <typename T, int kThreads>
DEVICE const RankKey* rankLevel(const Plan& plan, const Level& level, const Map<T>& objectness, const HandedOn& handed,
                                RankKey* large, RankShared<kThreads>& shared, int& found) {
    const int logits = level.cells * plan.anchors, wanted = level.candidates;
    bool from_map = level.chunks == 0, fits = wanted + kCrowd <= kRankRoom<kThreads>;
    RankKey held[kHeldKeys<kThreads>];
    if (from_map) {
        const Run<T> run(objectness, 0, level.cells, plan);
        T values[kHeldKeys<kThreads>];
#pragma unroll
        for (int k = 0; k < kHeldKeys<kThreads>; ++k) {
            values[k] = run.raw(min(k * kThreads + static_cast<int>(threadIdx.x), logits - 1));
        }
#pragma unroll
        for (int k = 0; k < kHeldKeys<kThreads>; ++k) {
            const int i = k * kThreads + threadIdx.x;
            held[k] = i < logits ? rankKey(to_float(values[k]), run.index(i)) : kNoCandidate;
        }
    } else {
        bool all_held;
        const int total = holdHandedOn<kThreads>(handed, level, held, shared, all_held);
        from_map = total < wanted && handed.bound > 1;  // the sample misled the chunks
        fits = fits && all_held && !from_map;
    }
    if (fits && sortByBuckets<kThreads>(held, wanted, shared, found)) return shared.keys;
    const Logits<T> all = {objectness, static_cast<unsigned>(plan.anchors)};
    const auto key_at = [&](int i) { return from_map ? all.key(i) : handed.keys[i]; };
    return sortExactly<kThreads>(key_at, from_map ? logits : level.chunks * level.chunk_keys, wanted, large, shared,
                                 found);
}

}  // namespace edgercnn::rpn_proposals
