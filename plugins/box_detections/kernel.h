// BoxDetections: from class logits and box deltas to detections. See README.md.
//
// B images, R rois per image, K foreground classes, D = max_detections.
#pragma once

#include "common/abi.h"

namespace edgercnn {

struct BoxDetections {
    int32_t batch, rois, classes;  // B, R, K
    int32_t type;                  // of class_logits and bbox_deltas: Type
    int32_t class_agnostic;        // 1: bbox_deltas is [B * R, 4], else [B * R, 4 (K + 1)]
    int32_t max_detections;        // D
    float score_threshold, nms_threshold, min_size;
    float box_coder_weights[4];
    float box_clip;
};

}  // namespace edgercnn

EDGERCNN_API const char* edgercnn_box_detections_check(const edgercnn::BoxDetections* op);
EDGERCNN_API size_t edgercnn_box_detections_workspace(const edgercnn::BoxDetections* op);

// rois float32 [B, R, 4]; num_rois int32 [B]; class_logits [B * R, K + 1]; im_info float32 [B, 4];
// num_detections int32 [B, 1]; detection_boxes float32 [B, D, 4]; detection_scores float32 [B, D];
// detection_classes int32 [B, D].
EDGERCNN_API int32_t edgercnn_box_detections(const edgercnn::BoxDetections* op, const float* rois,
                                             const int32_t* num_rois, const void* class_logits,
                                             const void* bbox_deltas, const float* im_info, int32_t* num_detections,
                                             float* detection_boxes, float* detection_scores,
                                             int32_t* detection_classes, void* workspace, void* stream);
