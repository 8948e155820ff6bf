// The types that every launch function shares. Plain C structs, so that a TensorRT plugin, a C program and Python's
// ctypes call one and the same thing, and the CUDA library and the CPU library take the same arguments.
//
// Every op has three functions, `edgercnn_<op>_check`, `_workspace` and the launch itself:
//   - `_check` returns null, or a sentence that says what is wrong with the op's numbers. No launch without it: a
//     launch function calls it, too, and returns kInvalidArgument.
//   - `_workspace` is the size in bytes of the scratch memory a launch needs; its contents need not be set or kept.
//   - the launch function puts kernels on `stream` and returns. It allocates nothing, copies nothing to or from the
//     host and waits for nothing, so it can be captured into a CUDA graph. Pointers are to device memory, aligned to
//     16 bytes.
// In the CPU library pointers are to host memory, `stream` is ignored and the work is done on return.
#pragma once

#include <stddef.h>
#include <stdint.h>

#define EDGERCNN_API extern "C" __attribute__((visibility("default")))

namespace edgercnn {

constexpr int32_t kMaxLevels = 6;

// A launch function's result: 0, kInvalidArgument, kKernelFault (CPU library: a kernel broke CUDA's rules), or the
// cudaError_t of the launch.
constexpr int32_t kSuccess = 0;
constexpr int32_t kInvalidArgument = -1;
constexpr int32_t kKernelFault = -2;

enum Type : int32_t { kFloat32 = 0, kFloat16 = 1 };

// How a map [B, C, H, W] lies in memory. kNHWC: cells one after the other, each with `pitch` elements of which the
// first C count (TensorRT's kHWC with pitch C, kHWC8 and kHWC16 with C rounded up to 8 or 16).
enum Layout : int32_t { kNCHW = 0, kNHWC = 1 };

}  // namespace edgercnn

// The sentence for a launch function's result; never null.
EDGERCNN_API const char* edgercnn_status_string(int32_t status);
