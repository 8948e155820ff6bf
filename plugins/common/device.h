// What a kernel may use, on a GPU and in the CPU library alike.
//
// Kernels are CUDA C++ in both: nvcc compiles kernel.cu for the GPU; g++ compiles the same file for the CPU, where
// cpu_grid.h supplies threadIdx, __shared__, barriers, warp votes and shuffles and runs every thread of a block as a
// fiber. So the code that CI runs is the code that the GPU runs, its indices and barriers included.
//
// Two things are spelled differently from plain CUDA, because g++ cannot parse them:
//     launch(kernel, grid, threads, shared_bytes, stream, arguments...)    for    kernel<<<...>>>(arguments...)
//     dynamic_shared()                                                     for    extern __shared__ unsigned char s[]
// Only kFullMask may be given to the warp functions, and all 32 lanes must reach them.
//
// Floating point: both compilers are told not to contract a * b + c into one rounding (-fmad=false,
// -ffp-contract=off), so that boxes are torchvision's to the bit. Where a fused multiply-add is wanted, say fmaf.
#pragma once

#include "common/abi.h"

#ifdef __CUDACC__
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#define HOST_DEVICE __host__ __device__ __forceinline__
#define DEVICE __device__ __forceinline__
#else
#include "common/cpu_grid.h"
#define HOST_DEVICE inline
#define DEVICE inline
#endif

#include <math.h>

namespace edgercnn {

constexpr unsigned kFullMask = 0xffffffffu;
constexpr int kWarpSize = 32;
constexpr size_t kPlainSharedBytes = 48 * 1024;  // what every GPU gives a block without being asked

#ifdef __CUDACC__
using Half = __half;
HOST_DEVICE float to_float(Half value) { return __half2float(value); }
DEVICE unsigned char* dynamic_shared() {
    extern __shared__ uint4 edgercnn_dynamic_shared[];
    return reinterpret_cast<unsigned char*>(edgercnn_dynamic_shared);
}
#endif
HOST_DEVICE float to_float(float value) { return value; }

template <typename T>
HOST_DEVICE T from_float(float value);  // rounded to nearest, ties to even; too large becomes infinite
template <>
HOST_DEVICE float from_float<float>(float value) { return value; }
#ifdef __CUDACC__
template <>
HOST_DEVICE Half from_float<Half>(float value) { return __float2half_rn(value); }
#else
template <>
HOST_DEVICE Half from_float<Half>(float value) { return float_to_half(value); }
#endif

// 16 bytes of T, read or written by one instruction; the address must be a multiple of 16.
template <typename T>
struct alignas(16) Pack {
    static constexpr int kSize = 16 / sizeof(T);
    T values[kSize];
};

#ifdef __CUDACC__
// Put one kernel on `stream`; the result is a cudaError_t. More than kPlainSharedBytes must have been asked for before.
template <typename... Parameters, typename... Arguments>
int32_t launch(void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared_bytes, void* stream,
               Arguments... arguments) {
    auto launch_typed = [&](Parameters... typed) {
        void* pointers[] = {&typed...};
        return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, dim3(threads), pointers, shared_bytes,
                                static_cast<cudaStream_t>(stream));
    };
    return static_cast<int32_t>(launch_typed(arguments...));
}
#endif

}  // namespace edgercnn
