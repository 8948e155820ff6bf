// Kernels that show plugins/common/rank.h, nms.h and boxes.h to test_device_code.py: one block each, on the CPU grid.
#include "common/nms.h"
#include "common/rank.h"

using namespace edgercnn;

constexpr int kThreads = 128;

__global__ void rankKernel(const RankKey* keys, int size, int count, RankKey* best, int* found) {
    __shared__ SelectScratch scratch;
    __shared__ unsigned counter;
    const auto key_at = [&](int i) { return keys[i]; };
    const RankKey least = blockSelect<kThreads>(key_at, size, count, scratch);
    const int collected = blockCollect<kThreads>(key_at, size, least, best, count, &counter);
    const int padded = nextPowerOfTwo(collected);
    for (int i = collected + threadIdx.x; i < padded; i += kThreads) best[i] = kNoCandidate;
    __syncthreads();
    blockSortDescending<kThreads>(best, padded);
    if (threadIdx.x == 0) *found = collected;
}

__global__ void nmsKernel(const Box* boxes, int count, int most, float threshold, TileSet* kept, int* kept_count) {
    TileSet* alive = reinterpret_cast<TileSet*>(dynamic_shared());
    for (int tile = threadIdx.x; tile < divideUp(count, kTile); tile += kThreads) {
        const int left = count - tile * kTile;
        alive[tile] = left >= kTile ? ~0ull : (1ull << left) - 1;
    }
    __syncthreads();
    const auto hits = [&](int i, int j) {
        return suppresses(boxes[i], boxArea(boxes[i]), boxes[j], boxArea(boxes[j]), threshold);
    };
    const auto suppressors = [&](int j) {
        TileSet set = 0;
        for (int i = j / kTile * kTile; i < j; ++i) set |= static_cast<TileSet>(hits(i, j)) << i % kTile;
        return set;
    };
    const auto suppressed = [&](int tile, TileSet set, int j) {
        for (int i = 0; i < kTile; ++i) {
            if ((set >> i & 1) && hits(tile * kTile + i, j)) return true;
        }
        return false;
    };
    const int total = blockNms<kThreads>(count, most, alive, suppressors, suppressed);
    for (int tile = threadIdx.x; tile < divideUp(count, kTile); tile += kThreads) kept[tile] = alive[tile];
    if (threadIdx.x == 0) *kept_count = total;
}

__global__ void sumKernel(const unsigned* values, unsigned* sums) {
    __shared__ unsigned warp_sums[kWarpSize];
    sums[threadIdx.x] = blockExclusiveSum<kThreads>(values[threadIdx.x], warp_sums);
}

EDGERCNN_API int32_t test_rank(const RankKey* keys, int size, int count, RankKey* best, int* found) {
    return launch(&rankKernel, dim3(1), kThreads, 0, nullptr, keys, size, count, best, found);
}

EDGERCNN_API int32_t test_nms(const Box* boxes, int count, int most, float threshold, TileSet* kept, int* kept_count) {
    const size_t bytes = divideUp(count, kTile) * sizeof(TileSet);
    return launch(&nmsKernel, dim3(1), kThreads, bytes, nullptr, boxes, count, most, threshold, kept, kept_count);
}

EDGERCNN_API int32_t test_sum(const unsigned* values, unsigned* sums) {
    return launch(&sumKernel, dim3(1), kThreads, 0, nullptr, values, sums);
}

EDGERCNN_API void test_rank_keys(const float* scores, const unsigned* indices, int size, RankKey* keys, float* back) {
    for (int i = 0; i < size; ++i) {
        keys[i] = rankKey(scores[i], indices[i]);
        back[i] = keyScore(keys[i]);
    }
}

EDGERCNN_API void test_suppresses(const Box* a, const Box* b, const float* thresholds, int size, uint8_t* result) {
    for (int i = 0; i < size; ++i) result[i] = suppresses(a[i], boxArea(a[i]), b[i], boxArea(b[i]), thresholds[i]);
}

EDGERCNN_API void test_decode(const float* deltas, const Box* boxes, const float* weights, float clip, int size,
                              float height, float width, Box* decoded) {
    for (int i = 0; i < size; ++i) {
        const float* delta = deltas + 4 * i;
        const Box box = decodeBox(delta[0], delta[1], delta[2], delta[3], boxes[i], boxCoder(weights, clip));
        decoded[i] = clipBox(box, height, width);
    }
}
