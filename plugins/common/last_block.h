// The block that ends a group of blocks, so that one launch can do what needs all of their results.
#pragma once

#include "common/device.h"

namespace edgercnn {

// Whether this block is the last of `blocks` to come here; then all its threads see what the others have written.
// `finished` is in global memory, 0 before the launch. All threads of the block must call.
DEVICE bool endsGroup(unsigned* finished, int blocks) {
    __shared__ bool last;
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        last = atomicAdd(finished, 1u) == static_cast<unsigned>(blocks - 1);
        __threadfence();
    }
    __syncthreads();
    return last;
}

}  // namespace edgercnn
