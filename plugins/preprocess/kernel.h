// Preprocess: camera frames on the device to the network's input, the rule of runtime/preprocess.py. See README.md.
//
// B frames, which may differ in size; H x W the padded network input, h x w the resized picture at its top left.
#pragma once

#include "common/abi.h"

namespace edgercnn {

constexpr int32_t kMaxFrames = 32;  // they travel as kernel arguments

enum FrameFormat : int32_t { kBGR8 = 0, kRGB8 = 1, kNV12 = 2 };
enum ColorStandard : int32_t { kBT601 = 0, kBT709 = 1 };  // of NV12, limited range (16 .. 235)

struct Frame {
    const void* pixels;          // [height][width][3] uint8, or the luma plane of NV12
    const void* chroma;          // NV12: [height / 2][width / 2] pairs (U, V); else null
    int32_t pitch, chroma_pitch;  // bytes from row to row
    int32_t height, width;       // image px; even for NV12
    int32_t valid_height, valid_width;  // h, w
};

struct Preprocess {
    int32_t batch;          // B
    int32_t format, color;  // FrameFormat, ColorStandard
    int32_t type;           // of the result: Type
    int32_t height, width;  // H, W
    double value_scale, mean[3], std[3];  // RGB; double, so that 1 / 255 is the spec's
    float pad_value;
    Frame frames[kMaxFrames];
};

}  // namespace edgercnn

EDGERCNN_API const char* edgercnn_preprocess_check(const edgercnn::Preprocess* op);
EDGERCNN_API size_t edgercnn_preprocess_workspace(const edgercnn::Preprocess* op);

// images [B, 3, H, W], RGB; im_info float32 [B, 4] = (h, w, scale_y, scale_x), written unless null. `op` is in host
// memory, the frames' pointers in it are to device memory.
EDGERCNN_API int32_t edgercnn_preprocess(const edgercnn::Preprocess* op, void* images, float* im_info, void* workspace,
                                         void* stream);
