// PyramidRoiAlign: RoIAlign of every roi from the pyramid level that its size asks for, all levels and images at once.
//
// B images, R rois per image, L levels, C channels, H x W cells of a level, P = output_size, S = sampling_ratio. The
// rule is README.md's. Ref: He et al., Mask R-CNN (2017), section 3; Lin et al., Feature Pyramid Networks (2017),
// equation 1; torchvision's MultiScaleRoIAlign and roi_align.
//
// A bin is the mean of S x S bilinear samples. A bilinear weight is a product of one per axis, and so the mean is, too:
//     bin = sum over rows y, columns x of  weight_y weight_x feature(y, x)
// over the rows and columns that the bin's samples touch: 2 to 2 S each, since neighbouring samples share some. These
// taps, an offset and a weight each, are found once per block, by one thread per bin and axis.
//
// Precision: coordinates, weights and sums are float32, coordinates operation by operation torchvision's; the result is
// rounded once to the features' type.
//
// One launch: grid (B R, chunks of channels), see common/roi_pooling.h; shared memory: taps, then the stage of results.
#include "pyramid_roi_align/kernel.h"

#include "common/boxes.h"
#include "common/check.h"
#include "common/roi_pooling.h"

namespace edgercnn::pyramid_roi_align {
namespace {

constexpr int32_t kMostSamplingRatio = 16;
// A corner beyond this coordinate, in cells, counts as there: infinite rois give numbers, and adaptive samples, half a
// cell apart or more, stay in order although float32 rounds. Up to here all is torchvision's.
constexpr float kFarthest = 1 << 18;

struct Level {
    const void* features;
    int height, width;
    float scale;
};

struct Arguments {
    PoolingPlan plan;
    Level levels[kMaxLevels];
    const Box* rois;
    int rois_per_image;
    int sampling_ratio;
    bool aligned;
    float canonical_scale, canonical_level, finest, coarsest;
    int row_taps, column_taps;  // capacities, even
};

// A feature row or column that a bin reads.
struct alignas(8) Tap {
    int offset;
    float weight;
};

static_assert(2 * (2 * kMostOutputSize * kMostSamplingRatio) * sizeof(Tap) + leastStageBytes(kMostOutputSize) <=
                  kPoolingSharedBytes,
              "the taps of both axes and the least stage fit into shared memory");

struct alignas(16) TapPair {
    Tap first, second;
};

struct alignas(8) TapRange {
    int begin, count;
};

// How a roi's samples lie along one axis.
struct Axis {
    float start, bin_size;  // cells
    int samples;            // per bin
    bool adaptive;
    int length, stride;     // of the features: cells, offset from one to the next
};

// Index of the roi's level.
DEVICE int levelOf(Box roi, const Arguments& a) {
    const float side = sqrtf(boxArea(roi));
    const float level = floorf(a.canonical_level + log2f(side / a.canonical_scale) + 1e-6f);
    return static_cast<int>(fminf(fmaxf(level, a.finest), a.coarsest) - a.finest);
}

DEVICE Axis axisOf(float low, float high, float scale, int length, int stride, const Arguments& a) {
    const float offset = a.aligned ? 0.5f : 0.0f;
    const float start = fminf(fmaxf(low * scale - offset, -kFarthest), kFarthest);
    const float end = fminf(fmaxf(high * scale - offset, -kFarthest), kFarthest);
    const float side = a.aligned ? end - start : fmaxf(end - start, 1.0f);
    const float bin_size = side / a.plan.size;
    const bool adaptive = a.sampling_ratio == 0;
    const int samples = adaptive ? static_cast<int>(ceilf(bin_size)) : a.sampling_ratio;
    return {start, bin_size, samples, adaptive, length, stride};
}

DEVICE float sampleAt(const Axis& axis, int bin, int sample) {
    return axis.start + bin * axis.bin_size + (sample + 0.5f) * axis.bin_size / axis.samples;
}

// The bin's first sample that is not more than a cell before the features; coordinates rise with the sample.
DEVICE int firstSample(const Axis& axis, int bin) {
    if (sampleAt(axis, bin, 0) >= -1.0f) return 0;
    int before = 0, found = axis.samples;
    while (found - before > 1) {
        const int middle = (before + found) / 2;
        (sampleAt(axis, bin, middle) >= -1.0f ? found : before) = middle;
    }
    return found;
}

// The taps of one bin along one axis, into the bin's own part of `taps`. Samples rise, so a sample shares taps with the
// one before or with none.
//
// With S samples the parts have 2 S taps. Adaptive samples are at most a cell apart: a bin touches all rows from its
// first to its last, of which the next bin shares two at most. A part that begins at its first row + 4 bin, made even,
// then ends before the next one.
DEVICE TapRange findTaps(const Axis& axis, int bin, Tap* taps) {
    TapRange range{0, 0};
    int cell = -1;  // the last sample lies between this one and the next,
    float weight = 0.0f, next_weight = 0.0f;  // whose weights are complete when a sample lies further on
    const float mean = 1.0f / max(axis.samples, 1);
    const auto add = [&](int at, float sum) {
        if (at < axis.length) taps[range.begin + range.count++] = {at * axis.stride, sum * mean};
    };
    for (int sample = firstSample(axis, bin); sample < axis.samples; ++sample) {
        const float at = fmaxf(sampleAt(axis, bin, sample), 0.0f);
        if (at > axis.length) break;
        const int low = min(static_cast<int>(at), axis.length - 1);
        const float high_part = low < axis.length - 1 ? at - low : 0.0f, low_part = 1.0f - high_part;
        if (low == cell) {
            weight += low_part;
            next_weight += high_part;
            continue;
        }
        if (cell < 0) {
            range.begin = axis.adaptive ? (low + 4 * bin) & ~1 : 2 * axis.samples * bin;
        } else {
            add(cell, weight);
            if (low > cell + 1) add(cell + 1, next_weight);
        }
        weight = low_part + (low == cell + 1 ? next_weight : 0.0f);
        next_weight = high_part;
        cell = low;
    }
    if (cell >= 0) {
        add(cell, weight);
        add(cell + 1, next_weight);
    }
    return range;
}

// Columns are read in pairs: the last of an odd number twice, with half its weight.
DEVICE void makeEven(Tap* taps, TapRange& range) {
    if (range.count % 2 == 0) return;
    Tap* end = taps + range.begin + range.count;
    end[-1].weight *= 0.5f;
    *end = end[-1];
    ++range.count;
}

// The roi's taps along both axes, by as many threads as there are bins along both; ranges[0] are rows.
DEVICE void findAllTaps(Box roi, const Level& level, int stride, const Arguments& a, Tap* row_taps, Tap* column_taps,
                        TapRange (*ranges)[kMostOutputSize]) {
    for (int i = threadIdx.x; i < 2 * a.plan.size; i += blockDim.x) {
        const bool down = i < a.plan.size;  // chosen by value, not by branch: a warp does both at one time
        const int bin = down ? i : i - a.plan.size;
        const Axis axis = axisOf(down ? roi.y1 : roi.x1, down ? roi.y2 : roi.x2, level.scale,
                                 down ? level.height : level.width, down ? level.width * stride : stride, a);
        Tap* taps = down ? row_taps : column_taps;
        TapRange range = findTaps(axis, bin, taps);
        if (!down) makeEven(taps, range);
        ranges[down ? 0 : 1][bin] = range;
    }
}

template <typename T, int kGroup>
DEVICE void addWeighted(const Pack<T>& values, float weight, float (&sums)[kGroup]) {
#pragma unroll
    for (int k = 0; k < kGroup; ++k) sums[k] = fmaf(to_float(values.values[k]), weight, sums[k]);
}

template <int kGroup, typename Reader>
DEVICE void sumTaps(const Reader& reader, const Tap* rows, int row_count, const TapPair* columns, int pair_count,
                    float (&sums)[kGroup]) {
    for (int row = 0; row < row_count; ++row) {
        const Tap tap = rows[row];
#pragma unroll 1  // one or two pairs, as a rule
        for (int pair = 0; pair < pair_count; ++pair) {
            const TapPair column = columns[pair];
            const auto first = reader.fetch(tap.offset + column.first.offset);
            const auto second = reader.fetch(tap.offset + column.second.offset);
            addWeighted(reader.values(first), tap.weight * column.first.weight, sums);
            addWeighted(reader.values(second), tap.weight * column.second.weight, sums);
        }
    }
}

template <typename T, bool kPacked>
__global__ void __launch_bounds__(kPoolingThreads, kPacked ? 0 : 3) poolRois(const Arguments a, T* pooled) {
    using Reader = GroupReader<T, kPacked>;
    __shared__ TapRange ranges[2][kMostOutputSize];
    __shared__ const void* image;
    __shared__ int64_t cells;
    Tap* row_taps = reinterpret_cast<Tap*>(dynamic_shared());
    Tap* column_taps = row_taps + a.row_taps;
    Pack<T>* stage = reinterpret_cast<Pack<T>*>(column_taps + a.column_taps);

    const Box roi = a.rois[blockIdx.x];
    const bool valid = roi.x2 > roi.x1 && roi.y2 > roi.y1;  // else padding, or NaN
    if (valid && static_cast<int>(threadIdx.x) < 2 * a.plan.size) {
        const Level& level = a.levels[levelOf(roi, a)];
        findAllTaps(roi, level, Reader::stride(a.plan.pitch), a, row_taps, column_taps, ranges);
        if (threadIdx.x == 0) {
            cells = static_cast<int64_t>(level.height) * level.width;
            const int64_t elements = cells * (a.plan.pitch > 0 ? a.plan.pitch : a.plan.channels);
            image = static_cast<const T*>(level.features) + blockIdx.x / a.rois_per_image * elements;
        }
    }
    __syncthreads();
    poolBins(a.plan, stage, pooled, [&](int bin, int channel, float(&sums)[Pack<T>::kSize]) {
        if (!valid) return;
        const int y = a.plan.by_size.quotient(bin), x = bin - y * a.plan.size;
        const TapRange rows = ranges[0][y], columns = ranges[1][x];
        sumTaps(Reader(image, channel, a.plan, cells), row_taps + rows.begin, rows.count,
                reinterpret_cast<const TapPair*>(column_taps + columns.begin), columns.count / 2, sums);
    });
}

int mostOf(const int32_t* sides, int levels) {
    int most = sides[0];
    for (int level = 1; level < levels; ++level) most = most > sides[level] ? most : sides[level];
    return most;
}

// Room for the taps along one axis, even; see findTaps.
int countTaps(const PyramidRoiAlign& op, const int32_t* sides) {
    if (op.sampling_ratio > 0) return 2 * op.output_size * op.sampling_ratio;
    return (mostOf(sides, op.levels) + 4 * op.output_size + 1) & ~1;
}

int roundedLevel(float scale) { return static_cast<int>(lroundf(-log2f(scale))); }

template <typename T>
int32_t launchPooling(const PyramidRoiAlign& op, const float* rois, const void* const* features, void* pooled,
                      void* stream) {
    Arguments a{};
    a.row_taps = countTaps(op, op.height);
    a.column_taps = countTaps(op, op.width);
    const size_t tap_bytes = sizeof(Tap) * (a.row_taps + a.column_taps);
    const int pitch = op.layout == kNHWC ? op.pitch : 0, output_pitch = op.output_layout == kNHWC ? op.output_pitch : 0;
    a.plan = planPooling<T>(op.channels, op.output_size, pitch, output_pitch, kPoolingSharedBytes - tap_bytes);
    for (int level = 0; level < op.levels; ++level) {
        a.levels[level] = {features[level], op.height[level], op.width[level], op.spatial_scale[level]};
    }
    a.rois = reinterpret_cast<const Box*>(rois);
    a.rois_per_image = op.rois;
    a.sampling_ratio = op.sampling_ratio;
    a.aligned = op.aligned != 0;
    a.canonical_scale = op.canonical_scale;
    a.canonical_level = static_cast<float>(op.canonical_level);
    a.finest = static_cast<float>(roundedLevel(op.spatial_scale[0]));
    a.coarsest = a.finest + (op.levels - 1);
    const dim3 grid(op.batch * op.rois, a.plan.chunks);
    return launch(a.plan.packed_input ? poolRois<T, true> : poolRois<T, false>, grid, a.plan.threads,
                  tap_bytes + a.plan.stage_bytes, stream, a, static_cast<T*>(pooled));
}

const char* checkLevels(const PyramidRoiAlign& op) {
    for (int level = 0; level < op.levels; ++level) {
        const int height = op.height[level], width = op.width[level];
        if (const char* problem = checkMap(op, height, width)) return problem;
        const float scale = op.spatial_scale[level];
        int exponent;
        if (op.levels > 1 && frexpf(scale, &exponent) != 0.5f) {
            return refuse("spatial_scale %d is %g; with several levels give powers of two", level, scale);
        }
        if (!(scale > 0.0f) || !isfinite(scale)) {
            return refuse("spatial_scale %d is %g; give a positive number", level, scale);
        }
        if (level > 0 && scale != 0.5f * op.spatial_scale[level - 1]) {
            return refuse("spatial_scale %d is %g; give half of the one before, %g", level, scale,
                          op.spatial_scale[level - 1]);
        }
    }
    return nullptr;
}

// Whether the taps leave room for the stage; with a sampling ratio they do.
const char* checkTaps(const PyramidRoiAlign& op) {
    if (op.sampling_ratio > 0) return nullptr;
    const int all = static_cast<int>((kPoolingSharedBytes - leastStageBytes(op.output_size)) / sizeof(Tap));
    const int most = all - 2 * (4 * op.output_size + 1);
    const int sides = mostOf(op.height, op.levels) + mostOf(op.width, op.levels);
    if (sides <= most) return nullptr;
    return refuse("sampling_ratio 0 with output_size %d takes features of height + width up to %d cells, not %d; give "
                  "a sampling_ratio of 1 to %d",
                  op.output_size, most, sides, kMostSamplingRatio);
}

}  // namespace
}  // namespace edgercnn::pyramid_roi_align

using namespace edgercnn;
using namespace edgercnn::pyramid_roi_align;

const char* edgercnn_pyramid_roi_align_check(const PyramidRoiAlign* op) {
    if (const char* problem = checkPooling(*op)) return problem;
    if (op->levels < 1 || op->levels > kMaxLevels) return refuse("levels are %d; give 1 to %d", op->levels, kMaxLevels);
    if (const char* problem = checkLevels(*op)) return problem;
    if (op->sampling_ratio < 0 || op->sampling_ratio > kMostSamplingRatio) {
        return refuse("sampling_ratio is %d; give 0 (adaptive) to %d", op->sampling_ratio, kMostSamplingRatio);
    }
    if (op->aligned != 0 && op->aligned != 1) return refuse("aligned is %d; give 0 or 1", op->aligned);
    if (!(op->canonical_scale > 0.0f) || !isfinite(op->canonical_scale)) {
        return refuse("canonical_scale is %g; give a positive number of network px", op->canonical_scale);
    }
    if (op->canonical_level < 0 || op->canonical_level > 30) {
        return refuse("canonical_level is %d; give 0 to 30", op->canonical_level);
    }
    return checkTaps(*op);
}

size_t edgercnn_pyramid_roi_align_workspace(const PyramidRoiAlign*) { return 0; }

int32_t edgercnn_pyramid_roi_align(const PyramidRoiAlign* op, const float* rois, const void* const* features,
                                   void* pooled, void*, void* stream) {
    if (edgercnn_pyramid_roi_align_check(op) != nullptr) return kInvalidArgument;
    if (op->batch == 0 || op->rois == 0) return kSuccess;
    const auto pool = op->type == kFloat16 ? launchPooling<Half> : launchPooling<float>;
    return pool(*op, rois, features, pooled, stream);
}
