// Linear layers: y = W x over several rows of x, with each weight read once for all of them.
//
// A tile computes W outputs of X rows at once. Each of these sums has an accumulator of its own that
// runs over the inputs in order and is added up by one fixed tree, so that the shape of the tile, and
// with it the number of rows, moves no bit.

#pragma once

#include "simd.h"
#include "stepwell.h"

namespace stepwell {
namespace STEPWELL_ISA {

constexpr int STRIP = 128;   // outputs that a thread computes at a time, at most

// Rows of x in the form that a weight format multiplies with, padded with zeros.
struct Operand {
    void *data;        // [rows, stride]
    float *scale;      // int8: [rows, groups]
    int32_t *offset;   // int8: [rows, groups, LANES], what the weights' shift by 128 adds
    int64_t stride;    // in elements
};

struct F32 {
    using Weight = float;
    using Input = float;
    static constexpr int STEP = LANES;
    using Weights = Floats;
    using Inputs = Floats;
    INLINE Floats weights(const float *from) { return load(from); }
    INLINE Floats inputs(const float *from) { return load(from); }
    INLINE Floats dot(Floats sum, Floats w, Floats x) { return fma(w, x, sum); }
    INLINE float convert(float value) { return value; }
};

struct BF16 {
    using Weight = bf16;
#if defined(__AVX512BF16__)
    using Input = bf16;
    static constexpr int STEP = 2 * LANES;
    using Weights = __m512bh;
    using Inputs = __m512bh;
    INLINE __m512bh weights(const bf16 *from) { return (__m512bh)_mm512_loadu_si512(from); }
    INLINE __m512bh inputs(const bf16 *from) { return (__m512bh)_mm512_loadu_si512(from); }
    INLINE Floats dot(Floats sum, __m512bh w, __m512bh x) { return _mm512_dpbf16_ps(sum, w, x); }
    INLINE bf16 convert(float value) { return to_bf16(value); }
#else
    using Input = float;
    static constexpr int STEP = LANES;
    using Weights = Floats;
    using Inputs = Floats;
    INLINE Floats weights(const bf16 *from) { return load(from); }
    INLINE Floats inputs(const float *from) { return load(from); }
    INLINE Floats dot(Floats sum, Floats w, Floats x) { return fma(w, x, sum); }
    INLINE float convert(float value) { return to_float(to_bf16(value)); }
#endif
};

// out[x][w] for W rows of weights and X rows of inputs; out has `out_stride` columns.
template <class Format, int W, int X>
INLINE void tile(const typename Format::Weight *const (&w)[W], const typename Format::Input *x, int64_t x_stride,
                 int32_t inputs, float *out, int64_t out_stride) {
    Floats sums[X][W] = {};
    int32_t k = 0;
    for (; k + Format::STEP <= inputs; k += Format::STEP) {
        typename Format::Weights weights[W];
#pragma GCC unroll 8
        for (int i = 0; i < W; ++i) {
            weights[i] = Format::weights(w[i] + k);
            __builtin_prefetch(w[i] + k + (int64_t)W * inputs);   // the next tile, while this one is computed
        }
#pragma GCC unroll 4
        for (int j = 0; j < X; ++j) {
            const typename Format::Inputs input = Format::inputs(x + j * x_stride + k);
#pragma GCC unroll 8
            for (int i = 0; i < W; ++i) sums[j][i] = Format::dot(sums[j][i], weights[i], input);
        }
    }
    if (k < inputs) {
        for (int i = 0; i < W; ++i) {
            typename Format::Weight tail[Format::STEP] = {};
            memcpy(tail, w[i] + k, (inputs - k) * sizeof *tail);
            const typename Format::Weights weights = Format::weights(tail);
            for (int j = 0; j < X; ++j)
                sums[j][i] = Format::dot(sums[j][i], weights, Format::inputs(x + j * x_stride + k));
        }
    }
#pragma GCC unroll 4
    for (int j = 0; j < X; ++j)
#pragma GCC unroll 2
        for (int i = 0; i < W; i += 4)
            sum4(sums[j][i], sums[j][i + 1], sums[j][i + 2], sums[j][i + 3], out + j * out_stride + i);
}

// A tile whose weights may end early: the last row stands in for those beyond.
template <class Format, int W, int X>
INLINE void outputs(const stepwell_linear &layer, int32_t first, int32_t count, const Operand &x, int32_t row,
                    float *out, int64_t out_stride) {
    const auto *weight = static_cast<const typename Format::Weight *>(layer.weight);
    const auto *input = static_cast<const typename Format::Input *>(x.data) + row * x.stride;
    const typename Format::Weight *w[W];
    for (int i = 0; i < W; ++i) w[i] = weight + (int64_t)(first + (i < count ? i : count - 1)) * layer.inputs;
    if (count >= W) return tile<Format, W, X>(w, input, x.stride, layer.inputs, out, out_stride);
    float all[X][W];
    tile<Format, W, X>(w, input, x.stride, layer.inputs, all[0], W);
    for (int j = 0; j < X; ++j) memcpy(out + j * out_stride, all[j], count * sizeof(float));
}

// out[r][i] = output first + i of row r, without bias. Few rows take more weights at a time.
template <class Format>
static void multiply(const stepwell_linear &layer, int32_t first, int32_t count, const Operand &x, int32_t rows,
                     float *out, int64_t out_stride) {
    if (rows <= 2) {
        for (int32_t i = 0; i < count; i += 8) {
            if (rows == 1) outputs<Format, 8, 1>(layer, first + i, count - i, x, 0, out + i, out_stride);
            else outputs<Format, 8, 2>(layer, first + i, count - i, x, 0, out + i, out_stride);
        }
        return;
    }
    const int32_t tiles = (rows + 3) / 4;
    for (int32_t i = 0; i < count; i += 4) {
        for (int32_t t = 0, row = 0; t < tiles; ++t) {
            const int32_t width = (rows - row + tiles - t - 1) / (tiles - t);   // 2, 3 or 4: evenly
            float *to = out + row * out_stride + i;
            if (width == 4) outputs<Format, 4, 4>(layer, first + i, count - i, x, row, to, out_stride);
            else if (width == 3) outputs<Format, 4, 3>(layer, first + i, count - i, x, row, to, out_stride);
            else outputs<Format, 4, 2>(layer, first + i, count - i, x, row, to, out_stride);
            row += width;
        }
    }
}

// Rows of x [rows, inputs] in a format's form. The padding lets a tile read whole vectors.
template <class Format>
INLINE void convert(const float *x, int64_t x_stride, int32_t rows, int32_t inputs, Operand &to) {
    using Input = typename Format::Input;
    to.stride = round_up(inputs, 64);
    for (int32_t row = 0; row < rows; ++row) {
        Input *data = static_cast<Input *>(to.data) + row * to.stride;
        const float *from = x + row * x_stride;
        for (int32_t k = 0; k < inputs; ++k) data[k] = Format::convert(from[k]);
        memset(data + inputs, 0, (to.stride - inputs) * sizeof(Input));
    }
}

}  // namespace STEPWELL_ISA
}  // namespace stepwell
