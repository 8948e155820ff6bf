// RoiMaxPool: the greatest feature in each of P x P bins of every roi, all images at once.
//
// B images, R rois per image, C channels, H x W cells, P = output_size. The rule is README.md's.
// Ref: Girshick, Fast R-CNN (2015), section 2.1; torchvision's roi_pool.
//
// Precision: bins are float32, operation by operation torchvision's. A feature is compared as float32, which float16
// becomes without rounding, so results are torchvision's to the bit: a NaN is never greater than another feature, and
// where nothing is greater than the least float32, that stands (-infinity in float16).
//
// One launch: grid (B R, chunks of channels), see common/roi_pooling.h; shared memory: the stage of results.
#include "roi_max_pool/kernel.h"

#include <float.h>

#include "common/boxes.h"
#include "common/roi_pooling.h"

namespace edgercnn::roi_max_pool {
namespace {

// A corner beyond this coordinate, in cells, counts as there: further away int32 would overflow.
constexpr float kFarthest = 1 << 29;

struct Arguments {
    PoolingPlan plan;
    const Box* rois;
    const void* features;
    int rois_per_image, height, width;
    float spatial_scale;
};

// The cells of a bin along one axis, begin <= i < end.
struct alignas(8) Cells {
    int begin, end;
};

DEVICE int cornerCell(float corner, float scale) {
    return static_cast<int>(roundf(fminf(fmaxf(corner * scale, -kFarthest), kFarthest)));  // half away from zero
}

DEVICE Cells cellsOf(float low, float high, int bin, int length, const Arguments& a) {
    const int start = cornerCell(low, a.spatial_scale), end = cornerCell(high, a.spatial_scale);
    const float bin_size = static_cast<float>(max(end - start + 1, 1)) / static_cast<float>(a.plan.size);
    const int begin = static_cast<int>(floorf(static_cast<float>(bin) * bin_size)) + start;
    const int behind = static_cast<int>(ceilf(static_cast<float>(bin + 1) * bin_size)) + start;
    return {min(max(begin, 0), length), min(max(behind, 0), length)};
}

template <typename T, int kGroup>
DEVICE void takeGreater(const Pack<T>& values, float (&greatest)[kGroup]) {
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
        const float value = to_float(values.values[k]);
        greatest[k] = value > greatest[k] ? value : greatest[k];
    }
}

template <int kGroup, typename Reader>
DEVICE void takeGreatest(const Reader& reader, Cells rows, Cells columns, int width, int stride,
                         float (&greatest)[kGroup]) {
    if (rows.begin >= rows.end || columns.begin >= columns.end) return;  // an empty bin stays zero
#pragma unroll
    for (int k = 0; k < kGroup; ++k) greatest[k] = -FLT_MAX;
    for (int row = rows.begin; row < rows.end; ++row) {
        const int offset = row * width;
#pragma unroll 1  // few, as a rule
        for (int column = columns.begin; column < columns.end; column += 2) {  // twice the last of an odd number
            const auto first = reader.fetch((offset + column) * stride);
            const auto second = reader.fetch((offset + min(column + 1, columns.end - 1)) * stride);
            takeGreater(reader.values(first), greatest);
            takeGreater(reader.values(second), greatest);
        }
    }
}

template <typename T, bool kPacked>
__global__ void __launch_bounds__(kPoolingThreads, kPacked ? 0 : 3) poolRois(const Arguments a, T* pooled) {
    using Reader = GroupReader<T, kPacked>;
    __shared__ Cells cells[2][kMostOutputSize];  // of rows, of columns
    const Box roi = a.rois[blockIdx.x];
    const bool valid = roi.x2 > roi.x1 && roi.y2 > roi.y1;  // else padding, or NaN
    for (int i = threadIdx.x; valid && i < 2 * a.plan.size; i += blockDim.x) {
        const bool down = i < a.plan.size;  // chosen by value, not by branch: a warp does both at one time
        const int bin = down ? i : i - a.plan.size;
        cells[down ? 0 : 1][bin] = cellsOf(down ? roi.y1 : roi.x1, down ? roi.y2 : roi.x2, bin,
                                           down ? a.height : a.width, a);
    }
    __syncthreads();
    const int64_t area = static_cast<int64_t>(a.height) * a.width;
    const int64_t elements = area * (a.plan.pitch > 0 ? a.plan.pitch : a.plan.channels);
    const T* image = static_cast<const T*>(a.features) + blockIdx.x / a.rois_per_image * elements;
    Pack<T>* stage = reinterpret_cast<Pack<T>*>(dynamic_shared());
    poolBins(a.plan, stage, pooled, [&](int bin, int channel, float(&greatest)[Pack<T>::kSize]) {
        if (!valid) return;
        const int y = a.plan.by_size.quotient(bin), x = bin - y * a.plan.size;
        takeGreatest(Reader(image, channel, a.plan, area), cells[0][y], cells[1][x], a.width,
                     Reader::stride(a.plan.pitch), greatest);
    });
}

template <typename T>
int32_t launchPooling(const RoiMaxPool& op, const float* rois, const void* features, void* pooled, void* stream) {
    const int pitch = op.layout == kNHWC ? op.pitch : 0, output_pitch = op.output_layout == kNHWC ? op.output_pitch : 0;
    Arguments a{};
    a.plan = planPooling<T>(op.channels, op.output_size, pitch, output_pitch, kPoolingSharedBytes);
    a.rois = reinterpret_cast<const Box*>(rois);
    a.features = features;
    a.rois_per_image = op.rois;
    a.height = op.height;
    a.width = op.width;
    a.spatial_scale = op.spatial_scale;
    const dim3 grid(op.batch * op.rois, a.plan.chunks);
    return launch(a.plan.packed_input ? poolRois<T, true> : poolRois<T, false>, grid, a.plan.threads,
                  a.plan.stage_bytes, stream, a, static_cast<T*>(pooled));
}

}  // namespace
}  // namespace edgercnn::roi_max_pool

using namespace edgercnn;
using namespace edgercnn::roi_max_pool;

const char* edgercnn_roi_max_pool_check(const RoiMaxPool* op) {
    if (const char* problem = checkPooling(*op)) return problem;
    if (const char* problem = checkMap(*op, op->height, op->width)) return problem;
    if (!(op->spatial_scale > 0.0f) || !isfinite(op->spatial_scale)) {
        return refuse("spatial_scale is %g; give a positive number of feature px per network px", op->spatial_scale);
    }
    return nullptr;
}

size_t edgercnn_roi_max_pool_workspace(const RoiMaxPool*) { return 0; }

int32_t edgercnn_roi_max_pool(const RoiMaxPool* op, const float* rois, const void* features, void* pooled, void*,
                              void* stream) {
    if (edgercnn_roi_max_pool_check(op) != nullptr) return kInvalidArgument;
    if (op->batch == 0 || op->rois == 0) return kSuccess;
    const auto pool = op->type == kFloat16 ? launchPooling<Half> : launchPooling<float>;
    return pool(*op, rois, features, pooled, stream);
}
