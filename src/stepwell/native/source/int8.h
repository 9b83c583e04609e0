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

// Weights and inputs as integers, a group of either at a step. Rows are padded to whole groups.
struct INT8 {
    static constexpr int STEP = GROUP, FEW = 1;
    using Weight = uint8_t;
    struct WeightRow {
        const uint8_t *data;
        const float *scale;
    };
    struct InputRow {
        const int8_t *data;
        const float *scale;
        const int32_t *offset;
    };
    INLINE WeightRow weight_row(const stepwell_linear &layer, int64_t output) {
        const int64_t group = output * groups_of(layer.inputs);
        return {static_cast<const uint8_t *>(layer.weight) + group * GROUP, layer.scale + group};
    }
    INLINE InputRow input_row(const Operand &x, int64_t row) {
        const int64_t group = row * x.stride / GROUP;
        return {static_cast<const int8_t *>(x.data) + group * GROUP, x.scale + group, x.offset + group * LANES};
    }
    INLINE const char *address(const WeightRow &row) { return reinterpret_cast<const char *>(row.data); }
    INLINE int32_t whole_steps(int32_t inputs) { return (int32_t)groups_of(inputs); }
    INLINE bool ends_early(int32_t) { return false; }
    INLINE WeightRow ending(const WeightRow &row, int32_t) { return row; }
    INLINE WeightRow weights(const WeightRow &row, int32_t step) { return {row.data + step * GROUP, row.scale + step}; }
    INLINE InputRow inputs(const InputRow &row, int32_t step) {
        return {row.data + step * GROUP, row.scale + step, row.offset + step * LANES};
    }
    INLINE Floats dot(Floats sum, const WeightRow &w, const InputRow &x) {
        const Ints exact = dot_group(w.data, x.data, x.offset);
        return fma(__builtin_convertvector(exact, Floats), splat(*x.scale) * splat(*w.scale), sum);
    }
};

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
