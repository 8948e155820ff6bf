// PyramidRoiAlign: RoIAlign of every roi from the pyramid level that its size asks for. See README.md.
//
// B images, R rois per image, L levels, C channels, H x W cells of a level, P = output_size.
#pragma once

#include "common/abi.h"

namespace edgercnn {

struct PyramidRoiAlign {
    int32_t batch, rois, levels, channels;  // B, R, L, C
    int32_t type, layout, pitch;            // of the features: Type, Layout, elements per cell (kNHWC only)
    int32_t output_layout, output_pitch;    // of the result, whose type is the features'
    int32_t height[kMaxLevels], width[kMaxLevels];
    float spatial_scale[kMaxLevels];        // feature px per network px, powers of two, finest first
    int32_t output_size, sampling_ratio, aligned;
    float canonical_scale;                  // network px
    int32_t canonical_level;
};

}  // namespace edgercnn

EDGERCNN_API const char* edgercnn_pyramid_roi_align_check(const edgercnn::PyramidRoiAlign* op);
EDGERCNN_API size_t edgercnn_pyramid_roi_align_workspace(const edgercnn::PyramidRoiAlign* op);

// rois float32 [B, R, 4]; features: host array of L device pointers to [B, C, H, W]; pooled [B * R, C, P, P].
EDGERCNN_API int32_t edgercnn_pyramid_roi_align(const edgercnn::PyramidRoiAlign* op, const float* rois,
                                                const void* const* features, void* pooled, void* workspace,
                                                void* stream);
