// edgercnn_status_string: the sentence for what a launch function returned.
#include "common/abi.h"

#ifdef EDGERCNN_WITH_CUDA
#include <cuda_runtime_api.h>
#else
EDGERCNN_API const char* edgercnn_cpu_fault();
#endif

EDGERCNN_API const char* edgercnn_status_string(int32_t status) {
    switch (status) {
        case edgercnn::kSuccess: return "no error";
        case edgercnn::kInvalidArgument: return "the op's numbers are not valid: its _check function says why";
#ifdef EDGERCNN_WITH_CUDA
        default: return cudaGetErrorString(static_cast<cudaError_t>(status));
#else
        case edgercnn::kKernelFault: return edgercnn_cpu_fault();
        default: return "not a result of this library";
#endif
    }
}
