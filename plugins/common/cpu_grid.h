// CUDA's kernel language for g++: runs grids on the CPU, to test kernels where there is no GPU. See device.h.
//
// Blocks run one after the other on the launching OS thread. Every thread of a block is a fiber, which runs until it
// waits at a barrier or a warp function, or ends; then the next one runs, in the order that edgercnn_cpu_set_schedule
// chose. A kernel's result must not depend on that order: if it does, a barrier is missing.
//
// Emulated: indices, static and dynamic shared memory, barriers, warp votes, shuffles and reductions, atomics.
// Reported as kKernelFault, with a sentence from edgercnn_cpu_fault: a barrier that not every thread reaches (of those
// that have not ended), a warp function that not all 32 lanes reach, threads that meet in different lines, a mask other
// than all lanes, a write past dynamic shared memory, more threads or shared memory than a GPU has.
//
// Not emulated:
//   - Concurrency and the memory model. A thread runs alone from one wait to the next, so fences do nothing and every
//     update is atomic. Lanes of one warp are no more in step than threads of different warps.
//   - Waiting in a loop for what another thread writes: it never ends.
//   - Static __shared__ variables start as zeros and then hold what the last block left; dynamic shared memory is
//     filled with 0xCD before every block.
//   - The GPU's expf and the like: libm's differ in the last bits.
// A thread has 64 KB of stack; more is a segmentation fault.
#pragma once

#ifdef __CUDACC__
#error "cpu_grid.h is for g++; under nvcc device.h takes CUDA's own headers"
#endif

#include <type_traits>

#include "common/abi.h"
#include "common/cpu_grid_math.h"

#pragma GCC diagnostic ignored "-Wunknown-pragmas"  // #pragma unroll; g++ < 13 heeds only -Wno-unknown-pragmas

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __shared__ static thread_local
#define __forceinline__ __inline__ __attribute__((always_inline))
#define __launch_bounds__(...)

namespace edgercnn {
namespace cpu_grid {
enum Schedule : int32_t { kForward = 0, kReverse = 1, kShuffled = 2 };
}
}  // namespace edgercnn

// How blocks and threads take turns in the calling OS thread's launches from now on. kShuffled: in random orders, a new
// one of the threads in every round and of the blocks in every launch; the seed sets them all until the next call.
EDGERCNN_API int32_t edgercnn_cpu_set_schedule(int32_t schedule, uint64_t seed);

// What was wrong in the calling OS thread's last launch with kKernelFault, until the next such; empty before the first.
EDGERCNN_API const char* edgercnn_cpu_fault();

#pragma GCC visibility push(hidden)
extern __thread uint3 threadIdx, blockIdx;
extern __thread dim3 blockDim, gridDim;
#pragma GCC visibility pop

namespace edgercnn {
namespace cpu_grid {

constexpr int kLanes = 32;

// Where a thread waits. Threads that meet must be in the same line.
struct Site {
    const char* function;
    const char* file;
    int line;
};

struct Vote {
    int arrived, count;  // threads at the barrier, those of them with a predicate that holds
};

struct Exchange {
    uint64_t values[kLanes];
    unsigned ballot;  // the lanes whose value is not 0
};

[[noreturn]] void fault(Site site, const char* what);
Vote barrier(Site site, bool predicate);
const Exchange& exchange(Site site, unsigned mask, uint64_t value);  // valid until the lane's next exchange
int32_t run(void (*thread_body)(void*), void* context, dim3 grid, int threads, size_t shared_bytes);

#pragma GCC visibility push(hidden)
extern __thread unsigned char* shared_memory;
#pragma GCC visibility pop

template <typename T>
uint64_t toWord(T value) {
    static_assert(std::is_trivially_copyable<T>::value && sizeof(T) <= 8, "lanes exchange at most 8 bytes");
    uint64_t word = 0;
    memcpy(&word, &value, sizeof(T));
    return word;
}

template <typename T>
T fromWord(uint64_t word) {
    T value;
    memcpy(&value, &word, sizeof(T));
    return value;
}

template <typename T>
T shuffle(Site site, unsigned mask, T value, int source, bool inside) {
    const Exchange& lanes = exchange(site, mask, toWord(value));
    return inside ? fromWord<T>(lanes.values[source]) : value;
}

template <typename T, typename Combine>
T reduce(Site site, unsigned mask, T value, Combine combine) {
    static_assert(std::is_same<T, int>::value || std::is_same<T, unsigned>::value, "CUDA reduces int and unsigned");
    const Exchange& lanes = exchange(site, mask, toWord(value));
    T result = fromWord<T>(lanes.values[0]);
    for (int i = 1; i < kLanes; ++i) result = combine(result, fromWord<T>(lanes.values[i]));
    return result;
}

inline int laneIndex() { return static_cast<int>(threadIdx.x % kLanes); }

// The types of CUDA's atomics; a value takes the type of its address.
template <typename T, bool with_float>
using Atomic = std::enable_if_t<std::is_same<T, int>::value || std::is_same<T, unsigned>::value ||
                                    std::is_same<T, unsigned long long>::value ||
                                    (with_float && std::is_same<T, float>::value),
                                T>;

}  // namespace cpu_grid

// The block's dynamic shared memory, aligned to at least 16 bytes.
inline unsigned char* dynamic_shared() { return cpu_grid::shared_memory; }

// Runs the whole grid and returns kSuccess or kKernelFault, or 9, cudaErrorInvalidConfiguration, for an empty grid.
template <typename... Parameters, typename... Arguments>
int32_t launch(void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared_bytes, void* /*stream*/,
               Arguments... arguments) {
    auto launch_typed = [&](Parameters... typed) {
        auto thread_body = [&] { kernel(typed...); };
        using ThreadBody = decltype(thread_body);
        return cpu_grid::run([](void* context) { (*static_cast<ThreadBody*>(context))(); }, &thread_body, grid, threads,
                             shared_bytes);
    };
    return launch_typed(arguments...);
}

}  // namespace edgercnn

// The last two parameters of what can wait: never given, their defaults are the caller's file and line.
#define CALLED_IN const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define SITE (edgercnn::cpu_grid::Site{__func__, file, line})

// ------------------------------------------------------------------------------------------------ the block

inline void __syncthreads(CALLED_IN) { edgercnn::cpu_grid::barrier(SITE, false); }
inline int __syncthreads_count(int predicate, CALLED_IN) {
    return edgercnn::cpu_grid::barrier(SITE, predicate != 0).count;
}
inline int __syncthreads_or(int predicate, CALLED_IN) {
    return edgercnn::cpu_grid::barrier(SITE, predicate != 0).count > 0;
}
inline int __syncthreads_and(int predicate, CALLED_IN) {
    const edgercnn::cpu_grid::Vote vote = edgercnn::cpu_grid::barrier(SITE, predicate != 0);
    return vote.count == vote.arrived;
}

// ------------------------------------------------------------------------------------------------ the warp

inline void __syncwarp(unsigned mask = 0xffffffffu, CALLED_IN) { edgercnn::cpu_grid::exchange(SITE, mask, 0); }
inline unsigned __ballot_sync(unsigned mask, int predicate, CALLED_IN) {
    return edgercnn::cpu_grid::exchange(SITE, mask, predicate != 0).ballot;
}
inline int __any_sync(unsigned mask, int predicate, CALLED_IN) {
    return edgercnn::cpu_grid::exchange(SITE, mask, predicate != 0).ballot != 0;
}
inline int __all_sync(unsigned mask, int predicate, CALLED_IN) {
    return edgercnn::cpu_grid::exchange(SITE, mask, predicate != 0).ballot == 0xffffffffu;
}
template <typename T>
unsigned __match_any_sync(unsigned mask, T value, CALLED_IN) {
    const uint64_t word = edgercnn::cpu_grid::toWord(value);
    const edgercnn::cpu_grid::Exchange& lanes = edgercnn::cpu_grid::exchange(SITE, mask, word);
    unsigned result = 0;
    for (int i = 0; i < edgercnn::cpu_grid::kLanes; ++i) result |= unsigned{lanes.values[i] == word} << i;
    return result;
}

// `width`, a power of two, splits the warp into groups; a lane whose source is not in its group keeps its own value.
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, CALLED_IN) {
    const int first = edgercnn::cpu_grid::laneIndex() & ~(width - 1);
    return edgercnn::cpu_grid::shuffle(SITE, mask, value, first + (source & (width - 1)), true);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, CALLED_IN) {
    const int lane = edgercnn::cpu_grid::laneIndex(), source = lane - static_cast<int>(delta);
    return edgercnn::cpu_grid::shuffle(SITE, mask, value, source, source >= (lane & ~(width - 1)));
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, CALLED_IN) {
    const int lane = edgercnn::cpu_grid::laneIndex(), source = lane + static_cast<int>(delta);
    return edgercnn::cpu_grid::shuffle(SITE, mask, value, source, source <= (lane | (width - 1)));
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, CALLED_IN) {
    const int lane = edgercnn::cpu_grid::laneIndex(), source = lane ^ lane_mask;
    return edgercnn::cpu_grid::shuffle(SITE, mask, value, source, source <= (lane | (width - 1)));
}

#define EDGERCNN_REDUCE(name, result)                                                               \
    template <typename T>                                                                           \
    T name(unsigned mask, T value, CALLED_IN) {                                                     \
        return edgercnn::cpu_grid::reduce(SITE, mask, value, [](T a, T b) -> T { return result; }); \
    }
EDGERCNN_REDUCE(__reduce_add_sync, a + b)
EDGERCNN_REDUCE(__reduce_min_sync, a < b ? a : b)
EDGERCNN_REDUCE(__reduce_max_sync, a > b ? a : b)
EDGERCNN_REDUCE(__reduce_and_sync, a & b)
EDGERCNN_REDUCE(__reduce_or_sync, a | b)
#undef EDGERCNN_REDUCE

[[noreturn]] inline void __trap(CALLED_IN) { edgercnn::cpu_grid::fault(SITE, "."); }

#undef SITE
#undef CALLED_IN

// ------------------------------------------------------------------------------------------------ memory

#define EDGERCNN_ATOMIC(name, with_float, result)                                             \
    template <typename T>                                                                     \
    edgercnn::cpu_grid::Atomic<T, with_float> name(T* address, std::common_type_t<T> value) { \
        const T old = *address;                                                               \
        *address = result;                                                                    \
        return old;                                                                           \
    }
EDGERCNN_ATOMIC(atomicAdd, true, old + value)
EDGERCNN_ATOMIC(atomicExch, true, value)
EDGERCNN_ATOMIC(atomicMax, false, old > value ? old : value)
EDGERCNN_ATOMIC(atomicMin, false, old < value ? old : value)
EDGERCNN_ATOMIC(atomicOr, false, old | value)
EDGERCNN_ATOMIC(atomicAnd, false, old & value)
#undef EDGERCNN_ATOMIC
template <typename T>
edgercnn::cpu_grid::Atomic<T, false> atomicCAS(T* address, std::common_type_t<T> compare, std::common_type_t<T> value) {
    const T old = *address;
    if (old == compare) *address = value;
    return old;
}
inline void __threadfence() {}
inline void __threadfence_block() {}
template <typename T>
T __ldg(const T* address) {
    return *address;
}
