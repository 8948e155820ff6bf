// Preprocess: camera frames on the device to the network's input in one launch. See README.md.
//
// B frames, uint8 BGR, RGB or NV12; H x W the padded network input, h x w the resized picture at its top left.
//
// Rule: runtime/preprocess.py's. Bilinear with half-pixel centres (exact positions; those outside of the frame move
//     to its border), then RGB, value * (value_scale / std) - mean / std. NV12 becomes RGB before, pixel by pixel, by
//     OpenCV's integers with 20 fraction bits.
// Precision: positions in integers, units of 2^-48 px: double has 1/64 of float's rate on most GPUs. Values are
//     float32, the result is rounded to T. Without resizing, float32 results are runtime/preprocess.py's to the bit.
// Launch: one kernel, 128 threads per block, grid.z is the frame. A thread has two neighbouring columns of the canvas
//     and one to four rows. Two columns and not eight: the bytes that a warp loads at once then lie in one or two cache
//     lines, and a warp's store fills whole sectors all the same. All threads of a block read the same rows of the
//     frame, so what depends on the row (position, addresses, which row is needed again) is the same for all.
#include "preprocess/kernel.h"

#include <string.h>

#include <type_traits>

#include "common/check.h"
#include "common/device.h"
#include "preprocess/pixels.h"

namespace edgercnn {
namespace {

using namespace pixels;

constexpr int kThreads = 96;  // 1344 px, two of a thread, are 7 blocks then, and none of them is idle
constexpr int kColumns = 2;  // of one thread
constexpr int kMaxRows = 4;  // of one thread, which has one more for every kPixelsPerRow of the batch
constexpr int kPixelsPerRow = 1 << 18;
constexpr int kTileWidth = kThreads * kColumns;
constexpr int32_t kMaxSide = 32767;          // positions have 15 bits before the point
constexpr long long kMaxBytes = 0xffffffff;  // of a plane: offsets have 32 bits
constexpr double kMaxFactor = 1e30;

struct Picture {
    const unsigned char* pixels;
    const unsigned char* chroma;
    unsigned pitch, chroma_pitch;
    Axis y, x;
    float scale_y, scale_x;
};

struct Plan {
    Picture pictures[kMaxFrames];
    YuvMatrix yuv;
    float factor[3], offset[3], pad;  // channels in the order in which they are read; values are in 1/256
    int32_t height, width;            // H, W
    int32_t rows;                     // of one thread
    long long image_step, first_plane, plane_step;  // elements; backwards for BGR, whose blue is read first
};
static_assert(sizeof(Plan) + 2 * sizeof(void*) <= 4096, "kernel arguments are at most 4 KB on every GPU");

// Reads rows of a BGR or RGB frame at a thread's columns.
struct PackedReader {
    const unsigned char* pixels;
    unsigned pitch, next;  // bytes to the next row and, 0 on frames of one column, to the next pixel
    unsigned offsets[kColumns];
    float weights[kColumns];

    DEVICE PackedReader(const Plan&, const Picture& picture, const Tap (&taps)[kColumns])
        : pixels(picture.pixels), pitch(picture.pitch), next(picture.x.size > 1 ? 3 : 0),
          offsets{3 * taps[0].first, 3 * taps[1].first}, weights{taps[0].weight, taps[1].weight} {}

    static DEVICE Color colorAt(const unsigned char* pixel) {
        return {{fractionOf(__ldg(pixel)), fractionOf(__ldg(pixel + 1)), fractionOf(__ldg(pixel + 2))}};
    }

    DEVICE void read(unsigned y, Color (&colors)[kColumns]) {
        const unsigned char* row = pixels + y * pitch;
#pragma unroll
        for (int column = 0; column < kColumns; ++column) {
            const unsigned char* pixel = row + offsets[column];
            colors[column] = between(colorAt(pixel), colorAt(pixel + next), weights[column]);
        }
    }
};

// Reads rows of an NV12 frame. Two rows in turn often have the same row of U and V, which is then not read again.
struct Nv12Reader {
    const Picture& picture;
    const YuvMatrix& yuv;
    unsigned offsets[kColumns], pairs[kColumns][2];  // of luma; of U and V of the left and the right pixel
    float weights[kColumns];
    Chroma chroma[kColumns][2];
    unsigned chroma_row = ~0u;

    DEVICE Nv12Reader(const Plan& plan, const Picture& picture, const Tap (&taps)[kColumns])
        : picture(picture), yuv(plan.yuv) {
#pragma unroll
        for (int column = 0; column < kColumns; ++column) {
            offsets[column] = taps[column].first;
            pairs[column][0] = taps[column].first & ~1u;
            pairs[column][1] = (taps[column].first + 1) & ~1u;
            weights[column] = taps[column].weight;
        }
    }

    DEVICE void read(unsigned y, Color (&colors)[kColumns]) {
        if (y / 2 != chroma_row) readChroma(y / 2);
        const unsigned char* row = picture.pixels + y * picture.pitch;
#pragma unroll
        for (int column = 0; column < kColumns; ++column) {
            const unsigned char* luma = row + offsets[column];
            const Color first = colorOf(__ldg(luma), chroma[column][0], yuv);
            const Color second = colorOf(__ldg(luma + 1), chroma[column][1], yuv);
            colors[column] = between(first, second, weights[column]);
        }
    }

    DEVICE void readChroma(unsigned row) {
        const unsigned char* start = picture.chroma + row * picture.chroma_pitch;
        chroma_row = row;
#pragma unroll
        for (int column = 0; column < kColumns; ++column) {
#pragma unroll
            for (int side = 0; side < 2; ++side) {
                const unsigned uv = __ldg(reinterpret_cast<const unsigned short*>(start + pairs[column][side]));
                chroma[column][side] = chromaOf(uv & 255, uv >> 8, yuv);
            }
        }
    }
};

// Two neighbouring values as one word, for one store.
DEVICE unsigned long long packed(float first, float second) {
    return static_cast<unsigned long long>(__float_as_uint(second)) << 32 | __float_as_uint(first);
}
DEVICE unsigned packed(Half first, Half second) {
    unsigned short bits[2];
    memcpy(&bits[0], &first, sizeof(first));
    memcpy(&bits[1], &second, sizeof(second));
    return static_cast<unsigned>(bits[1]) << 16 | bits[0];
}

// One row of a thread's columns into the three planes. With an odd W pairs are not aligned, and the last has one pixel.
template <typename T>
DEVICE void store(const Plan& plan, T* target, int x, const float (&values)[3][kColumns]) {
    if (plan.width % kColumns == 0) {
#pragma unroll
        for (int channel = 0; channel < 3; ++channel) {
            const auto word = packed(from_float<T>(values[channel][0]), from_float<T>(values[channel][1]));
            *reinterpret_cast<std::remove_const_t<decltype(word)>*>(target + channel * plan.plane_step) = word;
        }
    } else {
        for (int channel = 0; channel < 3; ++channel) {
            T* const pair = target + channel * plan.plane_step;
            pair[0] = from_float<T>(values[channel][0]);
            if (x + 1 < plan.width) pair[1] = from_float<T>(values[channel][1]);
        }
    }
}

DEVICE void storeInfo(const Picture& picture, float* info) {
    info[0] = static_cast<float>(picture.y.valid);
    info[1] = static_cast<float>(picture.x.valid);
    info[2] = picture.scale_y;
    info[3] = picture.scale_x;
}

template <typename T, typename Reader>
__global__ void __launch_bounds__(kThreads) preprocessKernel(const Plan plan, T* images, float* im_info) {
    const Picture& picture = plan.pictures[blockIdx.z];
    if (im_info != nullptr && blockIdx.x + blockIdx.y + threadIdx.x == 0) storeInfo(picture, im_info + 4 * blockIdx.z);
    const int x = blockIdx.x * kTileWidth + threadIdx.x * kColumns, first_y = blockIdx.y * plan.rows;
    if (x >= plan.width) return;
    const int last_x = picture.x.valid - 1, end_y = atMost(first_y + plan.rows, plan.height);
    const int valid_end_y = x <= last_x ? atMost(end_y, picture.y.valid) : first_y;
    T* target = images + plan.first_plane + blockIdx.z * plan.image_step;
    target += static_cast<long long>(first_y) * plan.width + x;
    const Tap taps[kColumns] = {tapAt(picture.x, positionOf(picture.x, x)),
                                tapAt(picture.x, positionOf(picture.x, x + 1))};  // beyond last_x read but not stored
    long long position = positionOf(picture.y, first_y);
    Reader reader(plan, picture, taps);
    Color above[kColumns] = {}, below[kColumns] = {};
    unsigned above_row = ~0u, below_row = ~0u;  // of the frame
    float values[3][kColumns];
    int y = first_y;
#pragma unroll 1
    for (; y < valid_end_y; ++y, target += plan.width, position += 2 * picture.y.step) {
        const Tap tap = tapAt(picture.y, position);
        const unsigned next_row = atMost(tap.first + 1, picture.y.size - 1);
        if (tap.first == below_row) {
            for (int column = 0; column < kColumns; ++column) above[column] = below[column];
        } else if (tap.first != above_row) {
            reader.read(tap.first, above);
        }
        if (next_row != below_row) reader.read(next_row, below);
        above_row = tap.first;
        below_row = next_row;
#pragma unroll
        for (int channel = 0; channel < 3; ++channel) {
            const float factor = plan.factor[channel], offset = plan.offset[channel];
            const float first = between(above[0].values[channel], below[0].values[channel], tap.weight);
            const float second = between(above[1].values[channel], below[1].values[channel], tap.weight);
            values[channel][0] = first * factor - offset;
            values[channel][1] = x < last_x ? second * factor - offset : plan.pad;
        }
        store(plan, target, x, values);
    }
#pragma unroll
    for (int channel = 0; channel < 3; ++channel) values[channel][0] = values[channel][1] = plan.pad;
#pragma unroll 1
    for (; y < end_y; ++y, target += plan.width) store(plan, target, x, values);
}

Plan planOf(const Preprocess& op) {
    Plan plan = {};
    for (int i = 0; i < op.batch; ++i) {
        const Frame& frame = op.frames[i];
        Picture& picture = plan.pictures[i];
        picture.pixels = static_cast<const unsigned char*>(frame.pixels);
        picture.chroma = static_cast<const unsigned char*>(frame.chroma);
        picture.pitch = static_cast<unsigned>(frame.pitch);
        picture.chroma_pitch = static_cast<unsigned>(frame.chroma_pitch);
        picture.y = axisOf(frame.height, frame.valid_height);
        picture.x = axisOf(frame.width, frame.valid_width);
        picture.scale_y = static_cast<float>(static_cast<double>(frame.valid_height) / frame.height);
        picture.scale_x = static_cast<float>(static_cast<double>(frame.valid_width) / frame.width);
    }
    plan.yuv = matrixOf(op.color);
    const bool reversed = op.format == kBGR8;
    const long long plane = static_cast<long long>(op.height) * op.width;
    plan.image_step = 3 * plane;
    plan.first_plane = reversed ? 2 * plane : 0;
    plan.plane_step = reversed ? -plane : plane;
    for (int channel = 0; channel < 3; ++channel) {
        const int read = reversed ? 2 - channel : channel;
        plan.factor[read] = static_cast<float>(op.value_scale / op.std[channel]) * 256.0f;
        plan.offset[read] = static_cast<float>(op.mean[channel] / op.std[channel]);
    }
    plan.pad = op.pad_value;
    plan.height = op.height;
    plan.width = op.width;
    const long long rows = static_cast<long long>(op.batch) * op.height * op.width / kPixelsPerRow;
    plan.rows = rows < 1 ? 1 : rows < kMaxRows ? static_cast<int32_t>(rows) : kMaxRows;
    return plan;
}

template <typename T>
int32_t launchTyped(const Preprocess& op, void* images, float* im_info, void* stream) {
    const auto kernel = op.format == kNV12 ? preprocessKernel<T, Nv12Reader> : preprocessKernel<T, PackedReader>;
    const Plan plan = planOf(op);
    const dim3 grid((op.width + kTileWidth - 1) / kTileWidth, (op.height + plan.rows - 1) / plan.rows, op.batch);
    return launch(kernel, grid, kThreads, 0, stream, plan, static_cast<T*>(images), im_info);
}

const char* checkFrame(const Preprocess& op, int i) {
    const Frame& frame = op.frames[i];
    if (frame.height < 1 || frame.height > kMaxSide || frame.width < 1 || frame.width > kMaxSide) {
        return refuse("frame %d is %d x %d: both sides must be 1 to %d.", i, frame.height, frame.width, kMaxSide);
    }
    if (frame.valid_height < 1 || frame.valid_height > op.height || frame.valid_width < 1 ||
        frame.valid_width > op.width) {
        return refuse("frame %d is to become %d x %d: sides must be 1 or more and fit into the canvas, %d x %d.", i,
                      frame.valid_height, frame.valid_width, op.height, op.width);
    }
    const int32_t row_bytes = op.format == kNV12 ? frame.width : 3 * frame.width;
    if (frame.pixels == nullptr) return refuse("frame %d has a null pointer for pixels.", i);
    if (frame.pitch < row_bytes || static_cast<long long>(frame.pitch) * frame.height > kMaxBytes) {
        return refuse("frame %d has pitch %d: expected %d (one row) or more, and less than 4 GiB for all rows.", i,
                      frame.pitch, row_bytes);
    }
    if (op.format != kNV12) return nullptr;
    if (frame.height % 2 != 0 || frame.width % 2 != 0) {
        return refuse("frame %d is %d x %d: both sides of NV12 must be even.", i, frame.height, frame.width);
    }
    if (frame.chroma == nullptr) return refuse("frame %d has a null pointer for chroma, which NV12 needs.", i);
    if (reinterpret_cast<uintptr_t>(frame.chroma) % 2 != 0) {
        return refuse("frame %d has chroma at an odd address: pairs of U and V must be aligned to 2 bytes.", i);
    }
    if (frame.chroma_pitch < row_bytes || frame.chroma_pitch % 2 != 0 ||
        static_cast<long long>(frame.chroma_pitch) * (frame.height / 2) > kMaxBytes) {
        return refuse("frame %d has chroma_pitch %d: expected %d (one row) or more, even, and less than 4 GiB for all "
                      "rows.", i, frame.chroma_pitch, row_bytes);
    }
    return nullptr;
}

const char* checkNumbers(const Preprocess& op) {
    if (op.batch < 1 || op.batch > kMaxFrames) return refuse("batch is %d: expected 1 to %d.", op.batch, kMaxFrames);
    if (op.format < kBGR8 || op.format > kNV12) {
        return refuse("format is %d: expected 0 (BGR), 1 (RGB) or 2 (NV12).", op.format);
    }
    if (op.color != kBT601 && op.color != kBT709) {
        return refuse("color is %d: expected 0 (BT.601) or 1 (BT.709).", op.color);
    }
    if (op.type != kFloat32 && op.type != kFloat16) {
        return refuse("type is %d: expected 0 (float32) or 1 (float16).", op.type);
    }
    if (op.height < 1 || op.height > kMaxSide || op.width < 1 || op.width > kMaxSide) {
        return refuse("the canvas is %d x %d: both sides must be 1 to %d.", op.height, op.width, kMaxSide);
    }
    if (!isfinite(op.pad_value)) return refuse("pad_value is %g: expected a finite number.", op.pad_value);
    for (int i = 0; i < 3; ++i) {
        if (!(op.std[i] > 0.0) || !isfinite(op.std[i])) {
            return refuse("std[%d] is %g: expected a finite number above 0.", i, op.std[i]);
        }
        if (!(op.value_scale > 0.0) || !(op.value_scale / op.std[i] < kMaxFactor)) {
            return refuse("value_scale is %g and std[%d] %g: their quotient must be above 0 and below %g.",
                          op.value_scale, i, op.std[i], kMaxFactor);
        }
        if (!(fabs(op.mean[i] / op.std[i]) < kMaxFactor)) {
            return refuse("mean[%d] is %g and std[%d] %g: their quotient must be a number below %g.", i, op.mean[i], i,
                          op.std[i], kMaxFactor);
        }
    }
    return nullptr;
}

}  // namespace
}  // namespace edgercnn

EDGERCNN_API const char* edgercnn_preprocess_check(const edgercnn::Preprocess* op) {
    const char* refusal = edgercnn::checkNumbers(*op);
    for (int i = 0; refusal == nullptr && i < op->batch; ++i) refusal = edgercnn::checkFrame(*op, i);
    return refusal;
}

EDGERCNN_API size_t edgercnn_preprocess_workspace(const edgercnn::Preprocess*) { return 0; }

EDGERCNN_API int32_t edgercnn_preprocess(const edgercnn::Preprocess* op, void* images, float* im_info, void*,
                                         void* stream) {
    using namespace edgercnn;
    if (edgercnn_preprocess_check(op) != nullptr) return kInvalidArgument;
    return op->type == kFloat16 ? launchTyped<Half>(*op, images, im_info, stream)
                                : launchTyped<float>(*op, images, im_info, stream);
}
