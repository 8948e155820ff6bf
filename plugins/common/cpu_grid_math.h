// CUDA's types and arithmetic for g++, a part of cpu_grid.h: small vectors, bits, min and max, half precision.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

// ------------------------------------------------------------------------------------------------ small vectors

#define EDGERCNN_VECTORS(type, name, bytes)                                     \
    struct alignas(2 * (bytes)) name##2 {                                       \
        type x, y;                                                              \
    };                                                                          \
    struct name##3 {                                                            \
        type x, y, z;                                                           \
    };                                                                          \
    struct alignas(4 * (bytes)) name##4 {                                       \
        type x, y, z, w;                                                        \
    };                                                                          \
    inline name##2 make_##name##2(type x, type y) { return {x, y}; }            \
    inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; } \
    inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
EDGERCNN_VECTORS(float, float, 4)
EDGERCNN_VECTORS(int, int, 4)
EDGERCNN_VECTORS(unsigned, uint, 4)
EDGERCNN_VECTORS(unsigned short, ushort, 2)
EDGERCNN_VECTORS(unsigned char, uchar, 1)
#undef EDGERCNN_VECTORS

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// ------------------------------------------------------------------------------------------------ bits

namespace edgercnn {
namespace cpu_grid {

template <typename To, typename From>
To sameBits(From value) {
    static_assert(sizeof(To) == sizeof(From), "the same bits take the same room");
    To result;
    memcpy(&result, &value, sizeof(To));
    return result;
}

}  // namespace cpu_grid
}  // namespace edgercnn

inline unsigned __float_as_uint(float value) { return edgercnn::cpu_grid::sameBits<unsigned>(value); }
inline float __uint_as_float(unsigned value) { return edgercnn::cpu_grid::sameBits<float>(value); }
inline int __float_as_int(float value) { return edgercnn::cpu_grid::sameBits<int>(value); }
inline float __int_as_float(int value) { return edgercnn::cpu_grid::sameBits<float>(value); }

inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __popcll(unsigned long long value) { return __builtin_popcountll(value); }
inline int __ffs(int value) { return __builtin_ffs(value); }
inline int __ffsll(long long value) { return __builtin_ffsll(value); }
inline int __clz(int value) { return value == 0 ? 32 : __builtin_clz(static_cast<unsigned>(value)); }
inline int __clzll(long long value) {
    return value == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(value));
}
inline unsigned __brev(unsigned value) {
    value = __builtin_bswap32(value);
    value = (value >> 4 & 0x0f0f0f0fu) | (value & 0x0f0f0f0fu) << 4;
    value = (value >> 2 & 0x33333333u) | (value & 0x33333333u) << 2;
    return (value >> 1 & 0x55555555u) | (value & 0x55555555u) << 1;
}
inline unsigned long long __brevll(unsigned long long value) {
    const unsigned low = static_cast<unsigned>(value), high = static_cast<unsigned>(value >> 32);
    return static_cast<unsigned long long>(__brev(low)) << 32 | __brev(high);
}

// ------------------------------------------------------------------------------------------------ arithmetic

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float value) { return sqrtf(value); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }

// The overloads that CUDA has. Of a NaN and a number, the number; mixed signs compare as unsigned.
#define EDGERCNN_MIN_MAX(a_type, b_type, type)                                                            \
    inline type min(a_type a, b_type b) {                                                                 \
        return static_cast<type>(a) < static_cast<type>(b) ? static_cast<type>(a) : static_cast<type>(b); \
    }                                                                                                     \
    inline type max(a_type a, b_type b) {                                                                 \
        return static_cast<type>(a) > static_cast<type>(b) ? static_cast<type>(a) : static_cast<type>(b); \
    }
#define EDGERCNN_MIN_MAX_OF(type)                                 \
    EDGERCNN_MIN_MAX(type, type, type)                            \
    EDGERCNN_MIN_MAX(unsigned type, unsigned type, unsigned type) \
    EDGERCNN_MIN_MAX(type, unsigned type, unsigned type)          \
    EDGERCNN_MIN_MAX(unsigned type, type, unsigned type)
EDGERCNN_MIN_MAX_OF(int)
EDGERCNN_MIN_MAX_OF(long)
EDGERCNN_MIN_MAX_OF(long long)
#undef EDGERCNN_MIN_MAX_OF
#undef EDGERCNN_MIN_MAX
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }

// ------------------------------------------------------------------------------------------------ half precision

namespace edgercnn {

// IEEE binary16, as __half is, but bits only: arithmetic is in float.
struct Half {
    uint16_t bits;
};

inline float to_float(Half value) {
    const uint32_t sign = (value.bits & 0x8000u) << 16, magnitude = value.bits & 0x7fffu;
    if (magnitude >= 0x7c00u) return __uint_as_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
    if (magnitude >= 0x0400u) return __uint_as_float(sign | ((magnitude << 13) + 0x38000000u));
    const float subnormal = static_cast<float>(magnitude) * 0x1p-24f;
    return sign ? -subnormal : subnormal;
}

// Rounded to nearest, ties to even; too large becomes infinite, NaN the GPU's 0x7fff.
inline Half float_to_half(float value) {
    const uint32_t bits = __float_as_uint(value), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    uint32_t half;
    if (magnitude > 0x7f800000u) return {0x7fff};
    if (magnitude >= 0x47800000u) {  // 65536 and more
        half = 0x7c00u;
    } else if (magnitude >= 0x38800000u) {  // 2^-14 and more: normal; rounding up may carry into the exponent
        half = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
    } else {  // just above 0.5, floats are as far apart as subnormal halves: the addition rounds
        half = __float_as_uint(__uint_as_float(magnitude) + 0.5f) - 0x3f000000u;
    }
    return {static_cast<uint16_t>(sign | half)};
}

}  // namespace edgercnn
