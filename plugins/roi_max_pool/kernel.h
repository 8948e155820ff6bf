// RoiMaxPool: Fast R-CNN's RoI max pooling. See README.md.
//
// B images, R rois per image, C channels, H x W cells, P = output_size.
#pragma once

#include "common/abi.h"

namespace edgercnn {

struct RoiMaxPool {
    int32_t batch, rois, channels, height, width;  // B, R, C, H, W
    int32_t type, layout, pitch;                   // of the features: Type, Layout, elements per cell (kNHWC only)
    int32_t output_layout, output_pitch;           // of the result, whose type is the features'
    int32_t output_size;
    float spatial_scale;                           // feature px per network px
};

}  // namespace edgercnn

EDGERCNN_API const char* edgercnn_roi_max_pool_check(const edgercnn::RoiMaxPool* op);
EDGERCNN_API size_t edgercnn_roi_max_pool_workspace(const edgercnn::RoiMaxPool* op);

// rois float32 [B, R, 4]; features [B, C, H, W]; pooled [B * R, C, P, P].
EDGERCNN_API int32_t edgercnn_roi_max_pool(const edgercnn::RoiMaxPool* op, const float* rois, const void* features,
                                           void* pooled, void* workspace, void* stream);
