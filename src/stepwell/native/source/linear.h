// Linear layers: y = W x over several rows of x, with each weight read once for all of them.
//
// A tile computes W outputs of X rows. Each of these sums has an accumulator of its own that runs over
// the inputs in order and is added up by one fixed tree, so that the shape of the tile, and with it the
// number of rows, moves no bit.
//
// A format says how weights and inputs are held: its Weights and Inputs are what a row of either has at
// one step, dot() adds their products to a sum, and with at most FEW rows of inputs memory is what the CPU
// waits for. F32 and BF16 are here, 8-bit weights in int8.h.

#pragma once

#include "simd.h"
#include "stepwell.h"

namespace stepwell {
namespace STEPWELL_ISA {

constexpr int STRIP = 512;   // outputs that a thread computes at a time, at most
constexpr int W = 4;         // outputs of a tile
constexpr int PANEL = 128;   // outputs whose weights are kept in the cache for many rows of inputs
constexpr int MANY = 8;      // tiles of inputs that are many
constexpr int AHEAD = 1 << 13;   // bytes of weights that are fetched before they are needed
constexpr int MOST = LANES == 16 ? 6 : 3;   // rows of inputs of a tile: its sums fit the registers

// Rows of x in the form that a weight format multiplies with, padded with zeros.
struct Operand {
    void *data;        // [rows, stride]
    float *scale;      // int8: [rows, groups]
    int32_t *offset;   // int8: [rows, groups, LANES], what the weights' shift by 128 adds
    int64_t stride;    // in elements
};

// Weights and inputs as plain numbers, a vector of either at a step.
template <class Self, class Weight_, class Input_>
struct Plain {
    using Weight = Weight_;
    using Input = Input_;
    static constexpr int FEW = 2;
    using WeightRow = const Weight *;
    using InputRow = const Input *;
    INLINE WeightRow weight_row(const stepwell_linear &layer, int64_t output) {
        return static_cast<WeightRow>(layer.weight) + output * layer.inputs;
    }
    INLINE InputRow input_row(const Operand &x, int64_t row) {
        return static_cast<InputRow>(x.data) + row * x.stride;
    }
    INLINE const char *address(WeightRow row) { return reinterpret_cast<const char *>(row); }
    INLINE int32_t whole_steps(int32_t inputs) { return inputs / Self::STEP; }
    // The last weights of a row, fewer than a step, with zeros behind them.
    INLINE auto ending(WeightRow row, int32_t inputs) {
        Weight tail[Self::STEP] = {};
        const int32_t from = inputs / Self::STEP * Self::STEP;
        memcpy(tail, row + from, (inputs - from) * sizeof *tail);
        return Self::weights(tail, 0);
    }
    INLINE bool ends_early(int32_t inputs) { return inputs % Self::STEP != 0; }
};

struct F32 : Plain<F32, float, float> {
    static constexpr int STEP = LANES;
    INLINE Floats weights(const float *row, int32_t step) { return load(row + step * STEP); }
    INLINE Floats inputs(const float *row, int32_t step) { return load(row + step * STEP); }
    INLINE Floats dot(Floats sum, Floats w, Floats x) { return fma(w, x, sum); }
    INLINE float convert(float value) { return value; }
};

#if defined(__AVX512BF16__)
struct BF16 : Plain<BF16, bf16, bf16> {
    static constexpr int STEP = 2 * LANES;
    INLINE __m512bh weights(const bf16 *row, int32_t step) { return (__m512bh)_mm512_loadu_si512(row + step * STEP); }
    INLINE __m512bh inputs(const bf16 *row, int32_t step) { return (__m512bh)_mm512_loadu_si512(row + step * STEP); }
    INLINE Floats dot(Floats sum, __m512bh w, __m512bh x) { return _mm512_dpbf16_ps(sum, w, x); }
    INLINE bf16 convert(float value) { return to_bf16(value); }
};
#else
struct BF16 : Plain<BF16, bf16, float> {
    static constexpr int STEP = LANES;
    INLINE Floats weights(const bf16 *row, int32_t step) { return load(row + step * STEP); }
    INLINE Floats inputs(const float *row, int32_t step) { return load(row + step * STEP); }
    INLINE Floats dot(Floats sum, Floats w, Floats x) { return fma(w, x, sum); }
    INLINE float convert(float value) { return to_float(to_bf16(value)); }
};
#endif

// sums[x][w] of a tile, one row of weights after the other. Memory is read in order, as its prefetcher
// likes it best: with few rows of inputs the CPU waits for nothing else.
template <class Format, int X>
INLINE void along(const typename Format::WeightRow (&w)[W], const typename Format::InputRow (&x)[X], int32_t inputs,
                  Floats (&sums)[X][W]) {
    const int32_t steps = Format::whole_steps(inputs);
#pragma GCC unroll 4
    for (int i = 0; i < W; ++i) {
        Floats row[X] = {};
        for (int32_t step = 0; step < steps; ++step)
            for (int j = 0; j < X; ++j)
                row[j] = Format::dot(row[j], Format::weights(w[i], step), Format::inputs(x[j], step));
        if (Format::ends_early(inputs))
            for (int j = 0; j < X; ++j)
                row[j] = Format::dot(row[j], Format::ending(w[i], inputs), Format::inputs(x[j], steps));
        for (int j = 0; j < X; ++j) sums[j][i] = row[j];
    }
}

// The same sums with the rows of weights side by side: a product costs fewer loads. Where FETCH, memory
// from `next` on is fetched meanwhile, as much as a tile takes, again in order; beyond the weights that
// does no harm.
template <class Format, int X, bool FETCH>
INLINE void across(const typename Format::WeightRow (&w)[W], const typename Format::InputRow (&x)[X], int32_t inputs,
                   const char *next, Floats (&sums)[X][W]) {
    using Weights = decltype(Format::weights(w[0], 0));
    const int32_t steps = Format::whole_steps(inputs);
    for (int32_t step = 0; step < steps; ++step) {
        Weights weights[W];
#pragma GCC unroll 4
        for (int i = 0; i < W; ++i) {
            weights[i] = Format::weights(w[i], step);
            for (int line = 0; FETCH && line < Format::STEP * (int)sizeof(typename Format::Weight); line += 64)
                __builtin_prefetch(next, 0, 2), next += 64;
        }
#pragma GCC unroll 8
        for (int j = 0; j < X; ++j) {
            const auto input = Format::inputs(x[j], step);
#pragma GCC unroll 4
            for (int i = 0; i < W; ++i) sums[j][i] = Format::dot(sums[j][i], weights[i], input);
        }
    }
    if (!Format::ends_early(inputs)) return;
#pragma GCC unroll 4
    for (int i = 0; i < W; ++i) {
        const Weights weights = Format::ending(w[i], inputs);
#pragma GCC unroll 8
        for (int j = 0; j < X; ++j) sums[j][i] = Format::dot(sums[j][i], weights, Format::inputs(x[j], steps));
    }
}

// out[x][i] = output first + i, for W outputs and X rows of x. Where `count` ends before, what is written
// behind it means nothing: rows of `out` have room for whole tiles.
template <class Format, int X, bool FETCH>
INLINE void outputs(const stepwell_linear &layer, int32_t first, int32_t count, const Operand &x, int32_t row,
                    float *out, int64_t out_stride) {
    typename Format::WeightRow weights[W];   // the last row stands in for those beyond
    typename Format::InputRow inputs[X];
    for (int i = 0; i < W; ++i) weights[i] = Format::weight_row(layer, first + (i < count ? i : count - 1));
    for (int j = 0; j < X; ++j) inputs[j] = Format::input_row(x, row + j);
    const char *next = Format::address(weights[0]) + AHEAD;
    Floats sums[X][W] = {};
    if (X <= Format::FEW) along<Format>(weights, inputs, layer.inputs, sums);
    else across<Format, X, FETCH>(weights, inputs, layer.inputs, next, sums);
#pragma GCC unroll 8
    for (int j = 0; j < X; ++j) sum4(sums[j][0], sums[j][1], sums[j][2], sums[j][3], out + j * out_stride);
}

// `outputs` for `width` rows; the first that come to the weights fetch what follows them.
template <class Format, int X = MOST>
INLINE void outputs_of(int32_t width, const stepwell_linear &layer, int32_t first, int32_t count, const Operand &x,
                       int32_t row, float *out, int64_t out_stride) {
    if constexpr (X > 0) {
        if (width < X) outputs_of<Format, X - 1>(width, layer, first, count, x, row, out, out_stride);
        else if (row == 0) outputs<Format, X, true>(layer, first, count, x, row, out, out_stride);
        else outputs<Format, X, false>(layer, first, count, x, row, out, out_stride);
    }
}

// out[r][i] = output first + i of row r, without bias. The rows are shared out evenly over few tiles. With
// many of them a panel of weights stays in the cache while all rows pass, else the rows while weights pass.
template <class Format>
static void multiply(const stepwell_linear &layer, int32_t first, int32_t count, const Operand &x, int32_t rows,
                     float *out, int64_t out_stride) {
    const int32_t tiles = (rows + MOST - 1) / MOST, panel = tiles > MANY ? PANEL : W;
    for (int32_t begin = 0; begin < count; begin += panel) {
        const int32_t end = begin + panel < count ? begin + panel : count;
        for (int32_t t = 0, row = 0; t < tiles; ++t) {
            const int32_t width = (rows - row + tiles - t - 1) / (tiles - t);
            for (int32_t i = begin; i < end; i += W)
                outputs_of<Format>(width, layer, first + i, count - i, x, row, out + row * out_stride + i, out_stride);
            row += width;
        }
    }
}

// Rows of x [rows, inputs] in a format's form, from row `at` on. The padding lets a tile read whole vectors.
template <class Format>
INLINE void convert(const float *x, int64_t x_stride, int32_t rows, int32_t inputs, Operand &to, int32_t at = 0) {
    using Input = typename Format::Input;
    to.stride = round_up(inputs, 64);
    for (int32_t row = 0; row < rows; ++row) {
        Input *data = static_cast<Input *>(to.data) + (at + row) * to.stride;
        const float *from = x + row * x_stride;
        for (int32_t k = 0; k < inputs; ++k) data[k] = Format::convert(from[k]);
        memset(data + inputs, 0, (to.stride - inputs) * sizeof(Input));
    }
}

}  // namespace STEPWELL_ISA
}  // namespace stepwell
