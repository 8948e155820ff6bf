// Arithmetic of preprocessing, pixel by pixel: positions, bytes to floats, NV12 to RGB. See kernel.cu.
//
// Integer units have half of the float units' rate, and conversions between integers and floats a quarter or less. So
// integers do the YUV products and little else, an integer becomes a float by being shifted into 2^23's mantissa, and
// clamping is two saturations, which are a part of the subtractions before them.
#pragma once

#include "common/device.h"
#include "preprocess/kernel.h"

namespace edgercnn {
namespace pixels {  // other rooms have axes and taps, too

constexpr int kFraction = 20;  // bits of the YUV coefficients
constexpr int kBias = 512;     // keeps sums of YUV terms positive

// One axis of a frame and of the canvas.
struct Axis {
    unsigned long long step;  // image px per half network px, in 2^-48 px
    int32_t size, valid;      // of the frame, image px; of the resized picture, network px
};

// Coefficients times 2^20; the last three hold rounding, bias, and what the offsets of Y (16), U and V (128) come to.
struct YuvMatrix {
    int32_t luma, v_red, v_green, u_green, u_blue;
    int32_t red, green, blue;
};

// Where a network px lies in the frame: `weight` of the way from pixel `first` to the next one.
struct Tap {
    unsigned first;
    float weight;
};

struct Color {
    float values[3];  // in 1/256
};

// What U and V add to each channel's sum.
struct Chroma {
    unsigned values[3];
};

HOST_DEVICE int atMost(int value, int limit) { return value < limit ? value : limit; }
HOST_DEVICE int atLeast(int value, int limit) { return value > limit ? value : limit; }

// Position of network px `index` in 2^-48 px of the frame; below 0 before the first pixel's centre. The next one's is
// two steps further.
HOST_DEVICE long long positionOf(const Axis& axis, int index) {
    return static_cast<long long>((2u * index + 1u) * axis.step - (1ull << 47));
}

// On a side of 1 px there is no next pixel: the caller takes the same one twice.
HOST_DEVICE Tap tapAt(const Axis& axis, long long position) {
    const int pixel = static_cast<int>(position >> 48), last = axis.size - 1;
    const float rest = static_cast<float>(static_cast<unsigned>(position >> 16)) * 0x1p-32f;
    const float weight = pixel < 0 ? 0.0f : pixel < last ? rest : 1.0f;
    return {static_cast<unsigned>(atLeast(atMost(pixel, last - 1), 0)), weight};
}

// 2^23 + bits 20 and up of `sum`, by putting them into the mantissa: a conversion has a quarter of the rate or less.
HOST_DEVICE float wholePart(unsigned sum) {
    constexpr unsigned kTwoTo23 = 0x4b000000u;
#ifdef __CUDA_ARCH__
    return __uint_as_float(__funnelshift_r(sum, kTwoTo23 >> (32 - kFraction), kFraction));
#else
    union { unsigned bits; float number; } raw;
    raw.bits = kTwoTo23 | sum >> kFraction;
    return raw.number;
#endif
}

HOST_DEVICE float saturate(float value) {
#ifdef __CUDA_ARCH__
    return __saturatef(value);  // a part of the instruction that computes the value
#else
    return value < 0.0f ? 0.0f : value > 1.0f ? 1.0f : value;
#endif
}

// A channel in 1/256, clamped to 0 .. 255: above by the first saturation, below by the second. Nothing rounds.
HOST_DEVICE float channelOf(unsigned sum) {
    constexpr float kTop = 8388608.0f + kBias + 255.0f;
    const float below_top = saturate(fmaf(wholePart(sum), -0x1p-8f, kTop * 0x1p-8f));
    return saturate(255.0f * 0x1p-8f - below_top);
}

HOST_DEVICE Chroma chromaOf(unsigned u, unsigned v, const YuvMatrix& yuv) {
    return {{v * yuv.v_red + yuv.red, u * yuv.u_green + (v * yuv.v_green + yuv.green), u * yuv.u_blue + yuv.blue}};
}

HOST_DEVICE Color colorOf(unsigned luma, Chroma chroma, const YuvMatrix& yuv) {
    const unsigned y = (luma > 16 ? luma : 16), scale = yuv.luma;
    return {{channelOf(y * scale + chroma.values[0]), channelOf(y * scale + chroma.values[1]),
             channelOf(y * scale + chroma.values[2])}};
}

// byte / 256
HOST_DEVICE float fractionOf(unsigned byte) { return fmaf(wholePart(byte << kFraction), 0x1p-8f, -32768.0f); }

HOST_DEVICE float between(float first, float second, float weight) { return fmaf(weight, second - first, first); }

HOST_DEVICE Color between(Color first, Color second, float weight) {
    return {{between(first.values[0], second.values[0], weight), between(first.values[1], second.values[1], weight),
             between(first.values[2], second.values[2], weight)}};
}

// The step is rounded to nearest.
inline Axis axisOf(int32_t size, int32_t valid) {
    const unsigned long long numerator = static_cast<unsigned long long>(size) << 47, divisor = valid;
    return {(numerator + divisor / 2) / divisor, size, valid};
}

// OpenCV's coefficients, which have three decimals, or those of ITU-R BT.709-6 (section 3) to 20 bits.
inline YuvMatrix matrixOf(int32_t color) {
    YuvMatrix m = {1220542, 1673527, -852492, -409993, 2116026, 0, 0, 0};
    if (color == kBT709) m = {1220945, 1879825, -558796, -223607, 2215014, 0, 0, 0};
    const int32_t rest = (kBias << kFraction) + (1 << (kFraction - 1)) - 16 * m.luma;
    m.red = rest - 128 * m.v_red;
    m.green = rest - 128 * (m.v_green + m.u_green);
    m.blue = rest - 128 * m.u_blue;
    return m;
}

}  // namespace pixels
}  // namespace edgercnn
