// Ranking by (score descending, index ascending): one 64-bit key per candidate, and selection and sorting of keys by a
// block of threads.
//
// Keys are unique, because indices are. So the best `count` of them are one certain set whatever the order in which
// threads find them, and sorting them gives one certain order: no tie is left to chance, and no prefix sum is needed to
// keep candidates in the order of their indices.
#pragma once

#include "common/device.h"

namespace edgercnn {

using RankKey = unsigned long long;  // greater is better

constexpr RankKey kNoCandidate = 0;

// Key of the candidate `index`; kNoCandidate for a NaN score. 0.0 and -0.0 are equal scores.
HOST_DEVICE RankKey rankKey(float score, unsigned index) {
    if (!(score == score)) return kNoCandidate;
    union { float number; unsigned bits; } raw;
    raw.number = score == 0.0f ? 0.0f : score;
    const unsigned ordered = raw.bits & 0x80000000u ? ~raw.bits : raw.bits | 0x80000000u;
    return static_cast<RankKey>(ordered) << 32 | static_cast<unsigned>(~index);
}

HOST_DEVICE unsigned keyIndex(RankKey key) { return ~static_cast<unsigned>(key); }

HOST_DEVICE float keyScore(RankKey key) {
    const unsigned ordered = static_cast<unsigned>(key >> 32);
    union { float number; unsigned bits; } raw;
    raw.bits = ordered & 0x80000000u ? ordered & 0x7fffffffu : ~ordered;
    return raw.number;
}

HOST_DEVICE int nextPowerOfTwo(int count) {
    int power = 1;
    while (power < count) power *= 2;
    return power;
}

HOST_DEVICE int divideUp(int count, int divisor) { return (count + divisor - 1) / divisor; }

constexpr int kBuckets = 2048;  // 11 bits

// Shared memory of one block's selection.
struct SelectScratch {
    unsigned histogram[kBuckets];
    RankKey least[kWarpSize], greatest[kWarpSize];
    unsigned counts[kWarpSize];
    RankKey low, high;
    unsigned candidates, wanted, found;
};

DEVICE RankKey lesser(RankKey a, RankKey b) { return a < b ? a : b; }
DEVICE RankKey greater(RankKey a, RankKey b) { return a > b ? a : b; }

constexpr int kKeysAtOnce = 4;  // reads of a thread that are under way together: a key may be in memory far away

// keyAt of this thread's next keys from `base` on; kNoCandidate beyond the last.
template <int kThreads, typename KeyAt>
DEVICE void readKeys(KeyAt keyAt, int base, int size, RankKey (&keys)[kKeysAtOnce]) {
    for (int k = 0; k < kKeysAtOnce; ++k) {
        const int i = base + k * kThreads + static_cast<int>(threadIdx.x);
        const RankKey key = keyAt(min(i, size - 1));  // without a condition, so that the reads go out together
        keys[k] = i < size ? key : kNoCandidate;
    }
}

// Call use(keyAt(i)) for all i < size, and use(kNoCandidate) where a thread's share ends before another's.
template <int kThreads, typename KeyAt, typename Use>
DEVICE void blockForEachKey(KeyAt keyAt, int size, Use use) {
    for (int base = 0; base < size; base += kKeysAtOnce * kThreads) {
        RankKey keys[kKeysAtOnce];
        readKeys<kThreads>(keyAt, base, size, keys);
        for (int k = 0; k < kKeysAtOnce; ++k) use(keys[k]);
    }
}

// Least, greatest and number of the keys of all lanes.
DEVICE void warpBounds(RankKey& low, RankKey& high, unsigned& count) {
    for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
        low = lesser(low, __shfl_xor_sync(kFullMask, low, offset));
        high = greater(high, __shfl_xor_sync(kFullMask, high, offset));
        count += __shfl_xor_sync(kFullMask, count, offset);
    }
}

// Bounds and number of the keys that `keyAt(i)` gives for i < size into scratch; kNoCandidate does not count.
template <int kThreads, typename KeyAt>
DEVICE void blockBounds(KeyAt keyAt, int size, SelectScratch& scratch) {
    RankKey low = ~0ull, high = 0;
    unsigned count = 0;
    blockForEachKey<kThreads>(keyAt, size, [&](RankKey key) {
        if (key == kNoCandidate) return;
        low = lesser(low, key);
        high = greater(high, key);
        ++count;
    });
    warpBounds(low, high, count);
    const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
    if (lane == 0) {
        scratch.least[warp] = low;
        scratch.greatest[warp] = high;
        scratch.counts[warp] = count;
    }
    __syncthreads();
    if (warp == 0) {
        const bool used = lane < kThreads / kWarpSize;
        low = used ? scratch.least[lane] : ~0ull;
        high = used ? scratch.greatest[lane] : 0;
        count = used ? scratch.counts[lane] : 0;
        warpBounds(low, high, count);
        if (lane == 0) {
            scratch.low = low;
            scratch.high = high;
            scratch.candidates = count;
        }
    }
    __syncthreads();
}

// Sum of `value` over the threads before this one. `warp_sums` is shared memory for 32 numbers; ends with a barrier.
template <int kThreads>
DEVICE unsigned blockExclusiveSum(unsigned value, unsigned* warp_sums) {
    const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
    unsigned inclusive = value;
    for (int offset = 1; offset < kWarpSize; offset *= 2) {
        const unsigned below = __shfl_up_sync(kFullMask, inclusive, offset);
        if (lane >= offset) inclusive += below;
    }
    if (lane == kWarpSize - 1) warp_sums[warp] = inclusive;
    __syncthreads();
    constexpr int kWarps = kThreads / kWarpSize;
    static_assert((kWarps & (kWarps - 1)) == 0, "lanes sum the warps before theirs in pairs");
    unsigned before = lane % kWarps < warp ? warp_sums[lane % kWarps] : 0;
    for (int offset = kWarps / 2; offset > 0; offset /= 2) before += __shfl_xor_sync(kFullMask, before, offset);
    __syncthreads();
    return before + inclusive - value;
}

// The bucket, counted from the top, in which the `wanted`-th greatest key lies: into scratch.found, and into
// scratch.wanted how many keys of that bucket are wanted.
template <int kThreads>
DEVICE void findBucket(unsigned wanted, SelectScratch& scratch) {
    static_assert(kBuckets % kThreads == 0, "every thread sums the same number of buckets");
    constexpr int kPerThread = kBuckets / kThreads;
    const int top = kBuckets - 1 - static_cast<int>(threadIdx.x) * kPerThread;
    unsigned sum = 0;
    for (int i = 0; i < kPerThread; ++i) sum += scratch.histogram[top - i];
    unsigned before = blockExclusiveSum<kThreads>(sum, scratch.counts);
    if (before < wanted && wanted <= before + sum) {  // one thread
        int bucket = top;
        while (before + scratch.histogram[bucket] < wanted) before += scratch.histogram[bucket--];
        scratch.found = bucket;
        scratch.wanted = wanted - before;
    }
    __syncthreads();
}

// The least of the `count` greatest keys that `keyAt(i)` gives for i < size: the same for all threads. With fewer keys
// than that, 1, so that "key >= result" holds for all of them; kNoCandidate is no key.
//
// A radix select whose digits follow the data: the 2048 buckets divide the range between the least and the greatest key
// left, so neither a common exponent nor equal scores cost passes. Two or three passes as a rule, six at most.
// `count` is at least 1. With a `surplus` the result may be a lower key, which up to count + surplus keys reach: often
// a pass less. There is no barrier at the end: `scratch` is still being read when a thread returns.
template <int kThreads, typename KeyAt>
DEVICE RankKey blockSelect(KeyAt keyAt, int size, int count, SelectScratch& scratch, unsigned surplus = 0) {
    blockBounds<kThreads>(keyAt, size, scratch);
    RankKey low = scratch.low, high = scratch.high;
    unsigned wanted = count;
    if (scratch.candidates <= wanted) return 1;
    while (true) {
        const int excess = 64 - __clzll(static_cast<long long>(high - low)) - 11;  // bits beyond those of a bucket
        const int shift = excess > 0 ? excess : 0;
        for (int i = threadIdx.x; i < kBuckets; i += kThreads) scratch.histogram[i] = 0;
        __syncthreads();
        blockForEachKey<kThreads>(keyAt, size, [&](RankKey key) {
            if (key >= low && key <= high) atomicAdd(&scratch.histogram[(key - low) >> shift], 1u);
        });
        __syncthreads();
        findBucket<kThreads>(wanted, scratch);
        const RankKey bucket = scratch.found;
        wanted = scratch.wanted;
        const bool all = scratch.histogram[bucket] - wanted <= surplus || shift == 0;  // one key, if keys are unique
        low += bucket << shift;
        high = lesser(high, low + ((1ull << shift) - 1));
        if (all) return low;
        __syncthreads();  // the histogram is cleared next
    }
}

// Copy the keys >= `least` to `keys`, in no certain order; returns their number to all threads.
// `counter` is in shared memory. At most `capacity` are written.
template <int kThreads, typename KeyAt>
DEVICE int blockCollect(KeyAt keyAt, int size, RankKey least, RankKey* keys, int capacity, unsigned* counter) {
    const int lane = threadIdx.x % kWarpSize;
    if (threadIdx.x == 0) *counter = 0;
    __syncthreads();
    for (int base = 0; base < size; base += kKeysAtOnce * kThreads) {
        RankKey candidates[kKeysAtOnce];
        unsigned takers[kKeysAtOnce], total = 0;
        readKeys<kThreads>(keyAt, base, size, candidates);
        for (int k = 0; k < kKeysAtOnce; ++k) {
            takers[k] = __ballot_sync(kFullMask, candidates[k] != kNoCandidate && candidates[k] >= least);
            total += __popc(takers[k]);
        }
        if (total == 0) continue;
        unsigned start = 0;
        if (lane == 0) start = atomicAdd(counter, total);
        start = __shfl_sync(kFullMask, start, 0);
        for (int k = 0; k < kKeysAtOnce; ++k) {
            const int place = start + __popc(takers[k] & ((1u << lane) - 1));
            if ((takers[k] >> lane & 1) && place < capacity) keys[place] = candidates[k];
            start += __popc(takers[k]);
        }
    }
    __syncthreads();
    const int found = *counter;
    __syncthreads();
    return found < capacity ? found : capacity;
}

// Sort `keys` (shared or global memory of this block, `size` a power of two) descending: bitonic. Ends with a barrier.
//
// A pair with a stride up to 32 lies in the 64 keys that its warp alone touches: those steps need no block barrier.
// With `first_width` = size it is the last merge alone, of keys that ascend and then descend, or the other way round.
template <int kThreads>
DEVICE void blockSortDescending(RankKey* keys, int size, int first_width = 2) {
    for (int width = first_width; width <= size; width *= 2) {
        for (int stride = width / 2; stride > 0; stride /= 2) {
            for (int pair = threadIdx.x; pair < size / 2; pair += kThreads) {
                const int low = 2 * pair - (pair & (stride - 1)), high = low + stride;
                const RankKey first = keys[low], second = keys[high];
                const bool descending = (low & width) == 0;
                if ((first < second) == descending) {
                    keys[low] = second;
                    keys[high] = first;
                }
            }
            const int next_stride = stride > 1 ? stride / 2 : width;
            if (stride > kWarpSize || next_stride > kWarpSize) {
                __syncthreads();
            } else {
                __syncwarp();
            }
        }
    }
    __syncthreads();
}

}  // namespace edgercnn
