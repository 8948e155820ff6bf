// RpnProposals: from the maps of a region proposal network to the best rois. See README.md.
//
// B images, L levels, A anchors per cell, H x W cells of a level, R = post_nms_top_n.
#pragma once

#include "common/abi.h"

namespace edgercnn {

constexpr int32_t kMaxAnchors = 160;  // of one cell, all levels together: they travel as kernel arguments

struct RpnProposals {
    int32_t batch, levels, anchors;              // B, L, A
    int32_t type, layout;                        // of objectness and bbox_deltas: Type, Layout
    int32_t objectness_pitch, deltas_pitch;      // elements per cell, kNHWC only
    int32_t height[kMaxLevels], width[kMaxLevels];
    int32_t stride_y[kMaxLevels], stride_x[kMaxLevels];  // network px
    float base_anchors[4 * kMaxAnchors];         // [L][A] xyxy around the origin of a cell, network px
    int32_t pre_nms_top_n, post_nms_top_n;
    float nms_threshold, score_threshold, min_size;
    float box_coder_weights[4];
    float box_clip;
};

}  // namespace edgercnn

EDGERCNN_API const char* edgercnn_rpn_proposals_check(const edgercnn::RpnProposals* op);
EDGERCNN_API size_t edgercnn_rpn_proposals_workspace(const edgercnn::RpnProposals* op);

// im_info float32 [B, 4]; objectness and bbox_deltas: host arrays of L device pointers to [B, A, H, W] and
// [B, 4A, H, W]; rois float32 [B, R, 4]; num_rois int32 [B].
EDGERCNN_API int32_t edgercnn_rpn_proposals(const edgercnn::RpnProposals* op, const float* im_info,
                                            const void* const* objectness, const void* const* bbox_deltas, float* rois,
                                            int32_t* num_rois, void* workspace, void* stream);
