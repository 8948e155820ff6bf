// Kernels that hold cpu_grid.h to CUDA's rules; test_cpu_grid.py calls the functions at the end through ctypes.
//
// With EDGERCNN_TEST_MAIN this is a program, since AddressSanitizer must be there from a process's start.
#include "common/device.h"

namespace {

using namespace edgercnn;

constexpr int kWarps = 32;  // of the largest block

__device__ int laneOf() { return static_cast<int>(threadIdx.x % kWarpSize); }
__device__ int warpOf() { return static_cast<int>(threadIdx.x / kWarpSize); }

// ------------------------------------------------------------ kernels that are right

// sums[block] = the sum of the block's values, by halves in shared memory.
__global__ void __launch_bounds__(1024) sumBlocks(const int* values, int* sums) {
    __shared__ int partial[1024];
    const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
    partial[thread] = values[blockIdx.x * blockDim.x + threadIdx.x];
    __syncthreads();
#pragma unroll
    for (int step = 1; step < threads; step *= 2) {
        if (thread % (2 * step) == 0 && thread + step < threads) partial[thread] += partial[thread + step];
        __syncthreads();
    }
    if (thread == 0) sums[blockIdx.x] = partial[0];
}

// Inclusive prefix sums of one block's values: by shuffles in a warp, then the totals of the warps before.
__global__ void scanBlock(const unsigned long long* values, unsigned long long* sums) {
    __shared__ unsigned long long totals[kWarps];
    unsigned long long sum = __ldg(values + threadIdx.x);
    for (int step = 1; step < kWarpSize; step *= 2) {
        const unsigned long long other = __shfl_up_sync(kFullMask, sum, step);
        if (laneOf() >= step) sum += other;
    }
    if (laneOf() == kWarpSize - 1) totals[warpOf()] = sum;
    __syncthreads();
    for (int i = 0; i < warpOf(); ++i) sum += totals[i];
    sums[threadIdx.x] = sum;
}

// Keeps one block's odd values, in order; number[0] how many there are, number[1] and [2] whether any and whether all.
__global__ void keepOdd(const int* values, int* kept, int* number) {
    __shared__ int counts[kWarps];
    const int value = values[threadIdx.x], is_odd = value & 1;
    const unsigned odd = __ballot_sync(kFullMask, is_odd);
    if (laneOf() == 0) counts[warpOf()] = __popc(odd);
    __syncthreads();
    int place = __popc(odd & ((1u << laneOf()) - 1));
    for (int i = 0; i < warpOf(); ++i) place += counts[i];
    if (is_odd) kept[place] = value;
    const int count = __syncthreads_count(is_odd), any = __syncthreads_or(is_odd), all = __syncthreads_and(is_odd);
    number[0] = count, number[1] = any, number[2] = all;
}

// Bitonic sort of blockDim.x keys, a power of two, in dynamic shared memory.
__global__ void sortKeys(unsigned* keys) {
    unsigned* shared = reinterpret_cast<unsigned*>(dynamic_shared());
    const unsigned i = threadIdx.x;
    shared[i] = keys[i];
    __syncthreads();
    for (unsigned size = 2; size <= blockDim.x; size *= 2) {
        for (unsigned distance = size / 2; distance > 0; distance /= 2) {
            const unsigned other = i ^ distance, a = shared[i], b = shared[other];
            if (i < other && (a > b) == ((i & size) == 0)) shared[i] = b, shared[other] = a;
            __syncthreads();
        }
    }
    keys[i] = shared[i];
}

// The last block to finish adds up what all have left: result[0] the sum, result[1] that block's index.
__global__ void lastBlockAdds(const int* values, int* partial, unsigned* finished, int* result) {
    __shared__ bool is_last;
    int sum = values[blockIdx.x * blockDim.x + threadIdx.x];
    for (int step = kWarpSize / 2; step > 0; step /= 2) sum += __shfl_xor_sync(kFullMask, sum, step);
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = sum;
        __threadfence();
        is_last = atomicAdd(finished, 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (!is_last) return;
    sum = 0;
    for (unsigned i = threadIdx.x; i < gridDim.x; i += blockDim.x) sum += partial[i];
    sum = __reduce_add_sync(kFullMask, sum);
    if (threadIdx.x == 0) result[0] = sum, result[1] = static_cast<int>(blockIdx.x);
}

// indices[z][y][x][thread] = (x, y, z, thread) of every thread of the grid, visits = how often it ran.
__global__ void writeIndices(int4* indices, int* visits) {
    const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    const unsigned place = block * blockDim.x + threadIdx.x;
    indices[place] = make_int4(static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y),
                               static_cast<int>(blockIdx.z), static_cast<int>(threadIdx.x));
    atomicAdd(visits + place, 1);
}

// results[row][thread] of one warp, a row for every function.
__global__ void callWarpFunctions(const int* values, int* results) {
    const int lane = laneOf(), value = values[lane];
    int row = 0;
    auto put = [&](int result) { results[kWarpSize * row++ + lane] = result; };
    put(__shfl_sync(kFullMask, value, value));
    put(__shfl_sync(kFullMask, value, lane + 3, 8));
    put(__shfl_up_sync(kFullMask, value, 3));
    put(__shfl_up_sync(kFullMask, value, 3, 16));
    put(__shfl_down_sync(kFullMask, value, 5));
    put(__shfl_down_sync(kFullMask, value, 5, 8));
    put(__shfl_xor_sync(kFullMask, value, 9));
    put(__shfl_xor_sync(kFullMask, value, 9, 8));
    put(static_cast<int>(__shfl_sync(kFullMask, 0.5 * value, 31 - lane) * 2));
    put(__reduce_add_sync(kFullMask, value));
    put(__reduce_min_sync(kFullMask, value - 10));
    put(__reduce_max_sync(kFullMask, value));
    put(static_cast<int>(__reduce_or_sync(kFullMask, 1u << value % 32)));
    put(static_cast<int>(__match_any_sync(kFullMask, value)));
    put(__any_sync(kFullMask, lane == 7));
    put(__any_sync(kFullMask, lane == 32));
    put(__all_sync(kFullMask, lane < 32));
    put(__all_sync(kFullMask, lane != 7));
}

// All threads of all blocks at one value each; exchanged[i] says that thread i's value was seen once.
__global__ void callAtomics(int* integers, unsigned* words, unsigned long long* longs, float* sum, int* exchanged) {
    const int thread = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    atomicAdd(integers, 1);
    atomicMax(integers + 1, thread);
    atomicMin(integers + 2, -thread);
    const int last = atomicExch(integers + 3, thread);
    if (last >= 0) atomicAdd(exchanged + last, 1);
    atomicOr(words, 1u << thread % 32);
    atomicMax(words + 1, 0x80000000u + static_cast<unsigned>(thread));
    for (unsigned seen = words[2], old = 0; (old = atomicCAS(words + 2, seen, seen + 2)) != seen;) seen = old;
    atomicAdd(longs, 1ull << 33);
    atomicMax(longs + 1, static_cast<unsigned long long>(thread) << 33);
    atomicAdd(sum, 0.5f);
}

// Values kept in registers across waits: on a processor whose functions keep floating-point registers, in those, too.
__global__ void keepRegisters(const double* values, double* results) {
    const double* mine = values + 8 * threadIdx.x;
    double a = mine[0], b = mine[1], c = mine[2], d = mine[3], e = mine[4], f = mine[5], g = mine[6], h = mine[7];
    for (int i = 0; i < 4; ++i) {
        __syncthreads();
        const double last = a;
        a = b * 1.5, b = c + 1, c = d - 2, d = e * 0.5, e = f + 3, f = g - 4, g = h * 2, h = last + 5;
        __syncwarp();
    }
    results[threadIdx.x] = a + 2 * b + 3 * c + 4 * d + 5 * e + 6 * f + 7 * g + 8 * h;
}

// copied = the dynamic shared memory as a block finds it, before it leaves other bytes there.
__global__ void copyShared(unsigned char* copied, int bytes) {
    for (int i = static_cast<int>(threadIdx.x); i < bytes; i += static_cast<int>(blockDim.x)) {
        copied[static_cast<int>(blockIdx.x) * bytes + i] = dynamic_shared()[i];
        dynamic_shared()[i] = 1;
    }
}

// Half of the threads end; a barrier takes those that are left.
__global__ void endBeforeBarrier(int* count) {
    if (threadIdx.x % 2) return;
    const int left = __syncthreads_count(1);
    if (threadIdx.x == 0) *count = left;
}

// ------------------------------------------------------------ kernels that are wrong

// There should be a barrier between the write and the read of a neighbour's value.
__global__ void forgetBarrier(int* results) {
    __shared__ int shared[1024];
    shared[threadIdx.x] = -1;
    __syncthreads();
    shared[threadIdx.x] = static_cast<int>(threadIdx.x);
    results[threadIdx.x] = shared[(threadIdx.x + 1) % blockDim.x];
}

__global__ void waitAtTwoBarriers() {
    if (threadIdx.x < 40) {
        __syncthreads();
    } else {
        __syncthreads();
    }
}

__global__ void waitForEachOther() {
    if (threadIdx.x > 40) __syncwarp();
    __syncthreads();
}

__global__ void endBeforeVote() {
    if (threadIdx.x % 2) __ballot_sync(kFullMask, 1);
}

__global__ void voteInTwoLines() {
    if (threadIdx.x % 2)
        __any_sync(kFullMask, 1);
    else
        __any_sync(kFullMask, 1);
}

__global__ void voteOfSome() { __ballot_sync(0x0000ffffu, 1); }

__global__ void trapInBlock(unsigned block) {
    if (blockIdx.x == block && threadIdx.x == 3) __trap();
}

__global__ void writeShared(int byte) {
    if (threadIdx.x == 0) dynamic_shared()[byte] = 0;
}

using Kernel = void (*)();
constexpr Kernel kWrong[] = {waitAtTwoBarriers, waitForEachOther, endBeforeVote, voteInTwoLines, voteOfSome};

}  // namespace

// ------------------------------------------------------------ what Python calls

#define EXPORT(name) EDGERCNN_API int32_t test_##name

EXPORT(sum)(const int* values, int* sums, int blocks, int threads) {
    return launch(sumBlocks, blocks, threads, 0, nullptr, values, sums);
}
EXPORT(scan)(const unsigned long long* values, unsigned long long* sums, int threads) {
    return launch(scanBlock, 1, threads, 0, nullptr, values, sums);
}
EXPORT(keep_odd)(const int* values, int* kept, int* number, int threads) {
    return launch(keepOdd, 1, threads, 0, nullptr, values, kept, number);
}
EXPORT(sort)(unsigned* keys, int threads) { return launch(sortKeys, 1, threads, threads * 4, nullptr, keys); }
EXPORT(last_block)(const int* values, int* partial, unsigned* finished, int* result, int blocks, int threads) {
    return launch(lastBlockAdds, blocks, threads, 0, nullptr, values, partial, finished, result);
}
EXPORT(indices)(int* indices, int* visits, int x, int y, int z, int threads) {
    return launch(writeIndices, dim3(x, y, z), threads, 0, nullptr, reinterpret_cast<int4*>(indices), visits);
}
EXPORT(warp)(const int* values, int* results) { return launch(callWarpFunctions, 1, 32, 0, nullptr, values, results); }
EXPORT(atomics)(int* integers, unsigned* words, unsigned long long* longs, float* sum, int* exchanged, int blocks) {
    return launch(callAtomics, blocks, 100, 0, nullptr, integers, words, longs, sum, exchanged);
}
EXPORT(registers)(const double* values, double* results, int threads) {
    return launch(keepRegisters, 1, threads, 0, nullptr, values, results);
}
EXPORT(shared)(unsigned char* copied, int bytes, int blocks) {
    return launch(copyShared, blocks, 64, bytes, nullptr, copied, bytes);
}
EXPORT(end_early)(int* count, int threads) { return launch(endBeforeBarrier, 1, threads, 0, nullptr, count); }
EXPORT(forget_barrier)(int* results, int threads) { return launch(forgetBarrier, 1, threads, 0, nullptr, results); }
EXPORT(wrong)(int kernel, int threads) { return launch(kWrong[kernel], 2, threads, 0, nullptr); }
EXPORT(trap)(int block, int blocks) { return launch(trapInBlock, blocks, 64, 0, nullptr, block); }
EXPORT(write_shared)(int byte, int bytes) { return launch(writeShared, 1, 32, bytes, nullptr, byte); }

#ifdef EDGERCNN_TEST_MAIN
#include <stdio.h>
#include <stdlib.h>

// Good and wrong kernels in every order; with an argument, a write to that byte of 64 bytes of shared memory.
int main(int number, char** arguments) {
    if (number > 1) return test_write_shared(atoi(arguments[1]), 64);
    for (int i = 0; i < 9; ++i) {
        edgercnn_cpu_set_schedule(i % 3, 1);
        unsigned keys[1024];
        unsigned long long values[256], sums[256];
        for (unsigned j = 0; j < 1024; ++j) keys[j] = __brev(j), values[j % 256] = j;
        if (test_sort(keys, 1024) != 0 || test_scan(values, sums, 256) != 0) return 1;
        for (unsigned j = 1; j < 1024; ++j) {
            if (keys[j] < keys[j - 1] || sums[j % 256] < sums[0]) return 2;
        }
        if (test_wrong(i % 5, 64) != kKernelFault) return 3;
        printf("%s\n", edgercnn_cpu_fault());
    }
    return 0;
}
#endif
