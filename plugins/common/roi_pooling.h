// What the RoI poolings share: the work of a block and a thread, reading channels, writing either layout.
//
// N rois of all images, C channels, H x W cells of a map, P pooled size, T float or Half. G = 16 / sizeof(T) channels
// are a group: what one instruction reads where channels lie together.
//
// Grid: (N, chunks of channels). The chunk is the slow index: the blocks that run at one time read one chunk of the
// maps, which is more likely to stay in the cache than all of them.
// Block: one roi, `groups` groups of channels; a thread owns one (bin, group) after the other. Neighbouring threads
// have neighbouring groups where channels lie together, else neighbouring bins, so that a warp reads neighbours.
// Results go straight to memory where the output lies as the features do, else through shared memory, the stage.
#pragma once

#include <string.h>

#include "common/check.h"
#include "common/device.h"

namespace edgercnn {

constexpr int kPoolingThreads = 256;                         // at most; fewer where a block has fewer items
constexpr int kMostOutputSize = 40;                          // P; one group of 40 x 40 bins takes half of shared memory
constexpr int kMostPoolingChannels = 65536;
constexpr int kMostMapSide = 1 << 17;                        // cells
constexpr size_t kPoolingSharedBytes = kPlainSharedBytes - 1024;  // dynamic; the rest is the kernels' own
constexpr size_t kStageBytes = 26 * 1024;                    // six blocks share an Orin's or an A100's memory

// Division of 0 .. 65535 by 1 .. 4096: a product and a shift instead of some twenty instructions.
struct Divisor {
    unsigned value, magic;

    HOST_DEVICE int quotient(int number) const {
        return static_cast<int>(static_cast<uint64_t>(static_cast<unsigned>(number)) * magic >> 31);
    }
};

inline Divisor divisor(int value) {
    return {static_cast<unsigned>(value), (1u << 31) / static_cast<unsigned>(value) + 1};
}

// How a launch is divided; the same for all blocks.
struct PoolingPlan {
    int size, bins, channels;          // P, P * P, C
    int pitch, output_pitch;           // elements per cell and per bin; 0 for NCHW
    int groups, chunks, threads;       // groups per block, blocks per roi
    int stage_rows;                    // of `by_row.value` packs, `stage_stride` packs apart; 0: nothing is staged
    int stage_stride;
    bool packed_input, packed_output;  // 16 bytes at a time
    Divisor by_size, by_fast, by_row;  // fast: what neighbouring threads differ in, groups or bins
    size_t stage_bytes;
};

// Bytes of a stage of one group.
constexpr size_t leastStageBytes(int size) { return (static_cast<size_t>(size) * size + 1) * 16; }

// pitch, output_pitch: 0 for NCHW. most_stage_bytes: what the kernel can spare of kPoolingSharedBytes.
template <typename T>
PoolingPlan planPooling(int channels, int size, int pitch, int output_pitch, size_t most_stage_bytes) {
    constexpr int kGroup = Pack<T>::kSize;
    const auto upTo = [](int count, int divisor) { return (count + divisor - 1) / divisor; };
    PoolingPlan plan{};
    plan.size = size;
    plan.bins = size * size;
    plan.channels = channels;
    plan.pitch = pitch;
    plan.output_pitch = output_pitch;
    const bool staged = (pitch > 0) != (output_pitch > 0);
    const auto stageBytes = [&](int groups) {
        // an odd stride in packs: threads that write the same element of neighbouring rows meet no common bank
        plan.stage_rows = !staged ? 0 : output_pitch > 0 ? plan.bins : groups;
        plan.stage_stride = (output_pitch > 0 ? groups : plan.bins) | 1;
        return static_cast<size_t>(plan.stage_rows) * plan.stage_stride * sizeof(Pack<T>);
    };
    const size_t most = most_stage_bytes < kStageBytes ? most_stage_bytes : kStageBytes;
    int groups = plan.bins > 32 ? 8 : 256 / plan.bins;  // 8: 128 bytes of every cell, a cache line
    while (groups > 1 && stageBytes(groups) > most) groups /= 2;
    const int all = upTo(channels > output_pitch ? channels : output_pitch, kGroup);
    plan.chunks = upTo(all, groups);
    plan.groups = upTo(all, plan.chunks);
    plan.stage_bytes = stageBytes(plan.groups);
    const int items = plan.bins * plan.groups, warps = upTo(items, kWarpSize);
    plan.threads = upTo(warps, upTo(items, kPoolingThreads)) * kWarpSize;
    plan.packed_input = pitch > 0 && pitch % kGroup == 0;
    const int output_run = output_pitch > 0 ? output_pitch : channels * plan.bins;  // elements without a gap
    plan.packed_output = output_run % kGroup == 0;
    plan.by_size = divisor(size);
    plan.by_fast = divisor(pitch > 0 ? plan.groups : plan.bins);
    plan.by_row = divisor(output_pitch > 0 ? plan.groups : plan.bins);
    return plan;
}

// What is wrong with the numbers that both poolings have; null if nothing is.
template <typename Op>
const char* checkPooling(const Op& op) {
    if (op.batch < 0 || op.rois < 0) {
        return refuse("batch is %d and rois per image are %d; give 0 or more", op.batch, op.rois);
    }
    if (static_cast<int64_t>(op.batch) * op.rois > INT32_MAX) {
        return refuse("batch %d times %d rois exceeds 2^31 - 1; split the batch", op.batch, op.rois);
    }
    if (op.channels < 1 || op.channels > kMostPoolingChannels) {
        return refuse("channels are %d; give 1 to %d", op.channels, kMostPoolingChannels);
    }
    if (op.type != kFloat32 && op.type != kFloat16) {
        return refuse("type %d of the features is unknown; give float32 (0) or float16 (1)", op.type);
    }
    const char* const names[] = {"layout", "output_layout"};
    const int32_t layouts[] = {op.layout, op.output_layout}, pitches[] = {op.pitch, op.output_pitch};
    for (int i = 0; i < 2; ++i) {
        if (layouts[i] != kNCHW && layouts[i] != kNHWC) {
            return refuse("%s %d is unknown; give NCHW (0) or NHWC (1)", names[i], layouts[i]);
        }
        if (layouts[i] == kNHWC && (pitches[i] < op.channels || pitches[i] > 2 * kMostPoolingChannels)) {
            return refuse("the pitch of %s NHWC is %d; give %d (the channels) to %d", names[i], pitches[i], op.channels,
                          2 * kMostPoolingChannels);
        }
    }
    if (op.output_size < 1 || op.output_size > kMostOutputSize) {
        return refuse("output_size is %d; give 1 to %d", op.output_size, kMostOutputSize);
    }
    return nullptr;
}

// What is wrong with a map of height x width cells. Offsets in a map are 32 bits, in units of GroupReader::stride.
template <typename Op>
const char* checkMap(const Op& op, int height, int width) {
    if (height < 1 || height > kMostMapSide || width < 1 || width > kMostMapSide) {
        return refuse("features have %d x %d cells; give 1 to %d a side", height, width, kMostMapSide);
    }
    const int group = op.type == kFloat16 ? Pack<Half>::kSize : Pack<float>::kSize;
    const int pitch = op.layout == kNHWC ? op.pitch : 0;
    const int stride = pitch == 0 ? 1 : pitch % group == 0 ? pitch / group : pitch;
    if (static_cast<int64_t>(height) * width * stride > INT32_MAX) {
        return refuse("features of %d x %d cells with pitch %d are too large for 32-bit offsets; give smaller ones",
                      height, width, pitch);
    }
    return nullptr;
}

// Reads one group of channels of an image's map, cell by cell. `fetch` only loads, so several can be under way before
// the first `values`. Offsets are in units of `stride`.
template <typename T, bool kPacked>
class GroupReader;

// Channels together, every cell on a 16-byte boundary.
template <typename T>
class GroupReader<T, true> {
public:
    using Raw = uint4;

    DEVICE GroupReader(const void* image, int channel, const PoolingPlan&, int64_t)
        : cells_(reinterpret_cast<const uint4*>(static_cast<const T*>(image) + channel)) {}

    HOST_DEVICE static int stride(int pitch) { return pitch / Pack<T>::kSize; }  // from cell to cell

    DEVICE Raw fetch(int offset) const { return __ldg(cells_ + offset); }

    DEVICE static Pack<T> values(const Raw& raw) {
        Pack<T> pack;
        memcpy(&pack, &raw, sizeof(pack));
        return pack;
    }

private:
    const uint4* cells_;
};

// Element by element: NCHW, or cells of any number of elements. Beyond C the last channel is read again.
template <typename T>
class GroupReader<T, false> {
public:
    using Raw = Pack<T>;

    DEVICE GroupReader(const void* image, int channel, const PoolingPlan& plan, int64_t cells) {
        const int64_t step = plan.pitch > 0 ? 1 : cells;
#pragma unroll
        for (int k = 0; k < Pack<T>::kSize; ++k) {
            channels_[k] = static_cast<const T*>(image) + min(channel + k, plan.channels - 1) * step;
        }
    }

    HOST_DEVICE static int stride(int pitch) { return pitch > 0 ? pitch : 1; }

    DEVICE Raw fetch(int offset) const {
        Raw raw;
#pragma unroll
        for (int k = 0; k < Pack<T>::kSize; ++k) raw.values[k] = __ldg(channels_[k] + offset);
        return raw;
    }

    DEVICE static const Pack<T>& values(const Raw& raw) { return raw; }

private:
    const T* channels_[Pack<T>::kSize];
};

// One group of one bin, straight to its place.
template <typename T>
DEVICE void storeGroup(const PoolingPlan& plan, const Pack<T>& pack, int bin, int channel, T* pooled) {
    if (plan.output_pitch > 0) {
        T* to = pooled + (static_cast<int64_t>(blockIdx.x) * plan.bins + bin) * plan.output_pitch + channel;
        if (plan.packed_output) {
            if (channel < plan.output_pitch) *reinterpret_cast<Pack<T>*>(to) = pack;
            return;
        }
#pragma unroll
        for (int k = 0; k < Pack<T>::kSize; ++k) {
            if (channel + k < plan.output_pitch) to[k] = pack.values[k];
        }
    } else {
        T* to = pooled + (static_cast<int64_t>(blockIdx.x) * plan.channels + channel) * plan.bins + bin;
#pragma unroll
        for (int k = 0; k < Pack<T>::kSize; ++k) {
            if (channel + k < plan.channels) to[k * plan.bins] = pack.values[k];
        }
    }
}

// One group of one bin to the stage, which is in the output's order: [group][channel][bin], or [bin][group][channel].
template <typename T>
DEVICE void stageGroup(const PoolingPlan& plan, const Pack<T>& pack, int bin, int group, Pack<T>* stage) {
    if (plan.output_pitch > 0) {
        stage[bin * plan.stage_stride + group] = pack;
        return;
    }
    T* to = reinterpret_cast<T*>(stage + group * plan.stage_stride) + bin;
#pragma unroll
    for (int k = 0; k < Pack<T>::kSize; ++k) to[k * plan.bins] = pack.values[k];
}

// The block's whole stage to its place, 16 bytes a thread.
template <typename T>
DEVICE void storeStage(const PoolingPlan& plan, const Pack<T>* stage, T* pooled) {
    constexpr int kGroup = Pack<T>::kSize;
    const int first = blockIdx.y * plan.groups * kGroup, packs = static_cast<int>(plan.by_row.value);
    const bool last = plan.output_pitch > 0;
    const int row_step = last ? plan.output_pitch : packs * kGroup;  // elements in the output from row to row
    const int used = last ? plan.output_pitch - first : (plan.channels - first) * plan.bins;  // of a row, or of all
    const int64_t place = last ? static_cast<int64_t>(blockIdx.x) * plan.bins * plan.output_pitch + first
                               : (static_cast<int64_t>(blockIdx.x) * plan.channels + first) * plan.bins;
    for (int i = threadIdx.x; i < plan.stage_rows * packs; i += blockDim.x) {
        const int row = plan.by_row.quotient(i), within = (i - row * packs) * kGroup;
        const int left = used - within - (last ? 0 : row * row_step);
        if (left <= 0) continue;
        const Pack<T> pack = stage[row * plan.stage_stride + within / kGroup];
        T* to = pooled + place + static_cast<int64_t>(row) * row_step + within;
        if (plan.packed_output) {
            *reinterpret_cast<Pack<T>*>(to) = pack;
        } else {
#pragma unroll
            for (int k = 0; k < kGroup; ++k) {
                if (k < left) to[k] = pack.values[k];
            }
        }
    }
}

// All of the block's results: pool(bin, channel, values) gives those of G channels, which are zero before.
// All threads must call.
template <typename T, typename Pool>
DEVICE void poolBins(const PoolingPlan& plan, Pack<T>* stage, T* pooled, Pool pool) {
    constexpr int kGroup = Pack<T>::kSize;
    const int first = blockIdx.y * plan.groups * kGroup;
    for (int item = threadIdx.x; item < plan.bins * plan.groups; item += blockDim.x) {
        const int slow = plan.by_fast.quotient(item), fast = item - slow * static_cast<int>(plan.by_fast.value);
        const int bin = plan.pitch > 0 ? slow : fast, group = plan.pitch > 0 ? fast : slow;
        const int channel = first + group * kGroup;
        float values[kGroup] = {};
        if (channel < plan.channels) pool(bin, channel, values);
        if (channel + kGroup > plan.channels) {  // what was read beyond C
#pragma unroll
            for (int k = 0; k < kGroup; ++k) values[k] = channel + k < plan.channels ? values[k] : 0.0f;
        }
        Pack<T> pack;
#pragma unroll
        for (int k = 0; k < kGroup; ++k) pack.values[k] = from_float<T>(values[k]);
        if (plan.stage_rows > 0) {
            stageGroup(plan, pack, bin, group, stage);
        } else {
            storeGroup(plan, pack, bin, channel, pooled);
        }
    }
    if (plan.stage_rows > 0) {
        __syncthreads();
        storeStage(plan, stage, pooled);
    }
}

}  // namespace edgercnn
