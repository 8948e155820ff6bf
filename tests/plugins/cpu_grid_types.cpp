// Calls on the host what cpu_grid_math.h has of CUDA's types and arithmetic, for test_cpu_grid_types.py.
#include "common/device.h"

using namespace edgercnn;

EDGERCNN_API int32_t test_to_float(const Half* halves, float* values, int number) {
    for (int i = 0; i < number; ++i) values[i] = to_float(halves[i]);
    return kSuccess;
}
EDGERCNN_API int32_t test_to_half(const float* values, Half* halves, int number) {
    for (int i = 0; i < number; ++i) halves[i] = from_float<Half>(values[i]);
    return kSuccess;
}
// results[number][10]
EDGERCNN_API int32_t test_bits(const unsigned long long* words, long long* results, int number) {
    for (int i = 0; i < number; ++i, results += 10) {
        const unsigned long long word = words[i];
        const unsigned half = static_cast<unsigned>(word);
        const int counts[] = {__popc(half), __ffs(half), __clz(half), __popcll(word), __ffsll(word), __clzll(word)};
        for (int j = 0; j < 6; ++j) results[j] = counts[j];
        results[6] = __brev(half);
        results[7] = static_cast<long long>(__brevll(word));
        results[8] = __float_as_uint(__uint_as_float(half));
        results[9] = __float_as_int(__int_as_float(half));
    }
    return kSuccess;
}
// 0, or the line of what does not hold.
EDGERCNN_API int32_t test_overloads() {
#define HOLDS(condition) \
    if (!(condition)) return __LINE__
    HOLDS(min(-1, 2) == -1 && max(-1, 2) == 2 && max(-1, 2u) == 0xffffffffu && min(3u, -1) == 3u);
    HOLDS(min(size_t{5}, size_t{1} << 40) == 5 && max(-5ll, -6ll) == -5 && min(1ull << 63, 7ull) == 7);
    HOLDS(min(1.5f, NAN) == 1.5f && max(NAN, 1.5f) == 1.5f && max(-0.5, 0.25) == 0.25);
    HOLDS(sizeof(float4) == 16 && alignof(float4) == 16 && alignof(int2) == 8 && sizeof(uchar4) == 4);
    HOLDS(make_float4(1, 2, 3, 4).w == 4 && make_uint2(1, 2).y == 2 && dim3(7).z == 1 && sizeof(Pack<Half>) == 16);
    return 0;
}
