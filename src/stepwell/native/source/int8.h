// 8-bit weights: integer dot products, exact within a group, and their float32 sum over the groups.
//
// A row of x is scaled by its own largest value in each group, so that w x = s_w s_x (q_w . q_x), where
// the product in brackets is an exact int32. Groups are added up in order.

#pragma once

#include "linear.h"

namespace stepwell {
namespace STEPWELL_ISA {

constexpr int GROUP = STEPWELL_GROUP;

INLINE int64_t groups_of(int32_t inputs) { return round_up(inputs, GROUP) / GROUP; }

// Lane by lane, q_w . q_x over a group; weights are stored as q + 128.
INLINE Ints dot_group(const uint8_t *w, const int8_t *x, const int32_t *offset) {
#if defined(__AVX512VNNI__)
    __m512i sum = _mm512_loadu_si512(offset);
    for (int k = 0; k < GROUP; k += 64)
        sum = _mm512_dpbusd_epi32(sum, _mm512_loadu_si512(w + k), _mm512_loadu_si512(x + k));
    return (Ints)sum;
#elif defined(__AVX2__)
    (void)offset;
    __m256i sum = _mm256_setzero_si256();
    for (int k = 0; k < GROUP; k += 16) {
        const __m256i weights = _mm256_sub_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(w + k))),
                                                 _mm256_set1_epi16(128));
        const __m256i inputs = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(x + k)));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(weights, inputs));
    }
    return (Ints)sum;
#else
    (void)offset;
    int32_t sums[LANES] = {};
    for (int k = 0; k < GROUP; k += LANES)
        for (int lane = 0; lane < LANES; ++lane) sums[lane] += ((int32_t)w[k + lane] - 128) * x[k + lane];
    Ints sum;
    memcpy(&sum, sums, sizeof sum);
    return sum;
#endif
}

template <int W, int X>
INLINE void outputs_int8(const stepwell_linear &layer, int32_t first, int32_t count, const Operand &x, int32_t row,
                         float *out, int64_t out_stride) {
    const int64_t groups = groups_of(layer.inputs);
    const uint8_t *w[W];
    const float *w_scale[W];
    for (int i = 0; i < W; ++i) {
        const int64_t output = first + (i < count ? i : count - 1);
        w[i] = static_cast<const uint8_t *>(layer.weight) + output * groups * GROUP;
        w_scale[i] = layer.scale + output * groups;
    }
    const int8_t *input = static_cast<const int8_t *>(x.data) + row * x.stride;
    const float *x_scale = x.scale + row * groups;
    const int32_t *offset = x.offset + row * groups * LANES;
    Floats sums[X][W] = {};
    for (int64_t g = 0; g < groups; ++g) {
#pragma GCC unroll 4
        for (int j = 0; j < X; ++j) {
            const Floats scale = splat(x_scale[j * groups + g]);
#pragma GCC unroll 8
            for (int i = 0; i < W; ++i) {
                const Ints exact = dot_group(w[i] + g * GROUP, input + j * x.stride + g * GROUP,
                                             offset + (j * groups + g) * LANES);
                sums[j][i] = fma(__builtin_convertvector(exact, Floats), scale * splat(w_scale[i][g]), sums[j][i]);
            }
        }
    }
    float all[X][W];
    for (int j = 0; j < X; ++j) {
        for (int i = 0; i < W; i += 4)
            sum4(sums[j][i], sums[j][i + 1], sums[j][i + 2], sums[j][i + 3], all[j] + i);
        memcpy(out + j * out_stride, all[j], (count < W ? count : W) * sizeof(float));
    }
}

static void multiply_int8(const stepwell_linear &layer, int32_t first, int32_t count, const Operand &x, int32_t rows,
                          float *out, int64_t out_stride) {
    for (int32_t i = 0; i < count; i += 4) {
        int32_t row = 0;
        for (; row + 2 <= rows; row += 2)
            outputs_int8<4, 2>(layer, first + i, count - i, x, row, out + row * out_stride + i, out_stride);
        if (row < rows) outputs_int8<4, 1>(layer, first + i, count - i, x, row, out + row * out_stride + i, out_stride);
    }
}

static void convert_int8(const float *x, int64_t x_stride, int32_t rows, int32_t inputs, Operand &to) {
    const int64_t groups = groups_of(inputs);
    to.stride = groups * GROUP;
    for (int32_t row = 0; row < rows; ++row) {
        for (int64_t g = 0; g < groups; ++g) {
            const float *from = x + row * x_stride + g * GROUP;
            const int32_t count = g * GROUP + GROUP <= inputs ? GROUP : (int32_t)(inputs - g * GROUP);
            float largest = 0;
            for (int32_t k = 0; k < count; ++k) largest = __builtin_fabsf(from[k]) > largest ? __builtin_fabsf(from[k]) : largest;
            float broken = 0;   // NaN or infinity must not become a finite integer
            for (int32_t k = 0; k < count; ++k) broken += from[k] - from[k];
            const float inverse = largest > 0 ? 127 / largest : 0;
            int8_t *data = static_cast<int8_t *>(to.data) + row * to.stride + g * GROUP;
            int32_t *offset = to.offset + (row * groups + g) * LANES;
            memset(offset, 0, LANES * sizeof *offset);
            memset(data, 0, GROUP);
            for (int32_t k = 0; k < count; ++k) {
                const float shifted = from[k] * inverse + 12582912.0f;   // rounds to an integer
                int32_t bits;
                memcpy(&bits, &shifted, sizeof bits);
                data[k] = (int8_t)bits;
            }
            for (int32_t k = 0; k < GROUP; ++k) offset[k / 4 % LANES] -= 128 * data[k];
            to.scale[row * groups + g] = broken == 0 ? largest / 127 : __builtin_nanf("");
        }
    }
}

}  // namespace STEPWELL_ISA
}  // namespace stepwell
