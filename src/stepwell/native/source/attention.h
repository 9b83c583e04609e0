// Attention over the cache: a few neighbouring positions of a sequence, and the query heads that share
// a key head, so that keys and values are read once for all of them.
//
// Keys and values are taken from position 0 on (or from where the window begins), in one order that
// depends on the query's position alone.

#pragma once

#include "elementwise.h"
#include "hooks.h"
#include "linear.h"

namespace stepwell {
namespace STEPWELL_ISA {

constexpr int BLOCK = STEPWELL_BLOCK;
constexpr int QUERIES = 2 * MOST;   // that are computed together, where a key head has fewer

// Where one key head of one layer lies in the blocks of a row's sequence.
template <class Value>
struct Past {
    Value *cache;            // the layer's first key of block 0, for this head
    int64_t block_stride;    // elements from a block to the next
    int64_t values_offset;   // from a block's keys to its values
    const int32_t *table;
    int32_t width;

    Value *keys(int32_t position) const {
        return cache + table[position / BLOCK] * block_stride + (int64_t)(position % BLOCK) * width;
    }
    Value *values(int32_t position) const { return keys(position) + values_offset; }
};

// out[x][d] += sum over t of weights[x][t] * values[t][d], for X queries and neighbouring vectors of channels.
template <int X, int VECTORS, class Value>
INLINE void add_values(const float *weights, int64_t weight_stride, const Value *values, int32_t count, int32_t width,
                       float *out) {
    Floats sums[X][VECTORS];
    for (int x = 0; x < X; ++x)
        for (int v = 0; v < VECTORS; ++v) sums[x][v] = load(out + x * width + v * LANES);
    for (int32_t t = 0; t < count; ++t) {
        Floats value[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) value[v] = load(values + (int64_t)t * width + v * LANES);
#pragma GCC unroll 8
        for (int x = 0; x < X; ++x) {
            const Floats weight = splat(weights[x * weight_stride + t]);
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v) sums[x][v] = fma(weight, value[v], sums[x][v]);
        }
    }
    for (int x = 0; x < X; ++x)
        for (int v = 0; v < VECTORS; ++v) store(out + x * width + v * LANES, sums[x][v]);
}

// The same for all channels, of X queries.
template <int X, class Value>
INLINE void mix_values(const float *weights, int64_t stride, const Value *values, int32_t count, int32_t width,
                       float *out) {
    constexpr int WIDE = LANES == 16 ? 4 : 2;   // vectors whose sums fit the registers
    int32_t d = 0;
    for (; d + WIDE * LANES <= width; d += WIDE * LANES)
        add_values<X, WIDE>(weights, stride, values + d, count, width, out + d);
    for (; d + LANES <= width; d += LANES) add_values<X, 1>(weights, stride, values + d, count, width, out + d);
    for (; d < width; ++d)
        for (int x = 0; x < X; ++x)
            for (int32_t t = 0; t < count; ++t)
                out[x * width + d] += weights[x * stride + t] * to_float(values[(int64_t)t * width + d]);
}

// The positions from `begin` to `end`, in the pieces that lie in one block each: each(from, count).
template <class Each>
INLINE void in_blocks(int32_t begin, int32_t end, Each each) {
    for (int32_t from = begin; from < end;) {
        const int32_t rest = BLOCK - from % BLOCK, count = rest < end - from ? rest : end - from;
        each(from, count);
        from += count;
    }
}

// Adds the values from `begin` to `end` to the mixtures of `rows` queries; weights[0] is that of `begin`.
template <class Value, int X = MOST>
INLINE void mix(const Past<Value> &past, int32_t begin, int32_t end, int32_t rows, const float *weights,
                int64_t stride, float *out) {
    if constexpr (X > 0) {
        int32_t row = 0;
        for (; row + X <= rows; row += X)
            in_blocks(begin, end, [&](int32_t from, int32_t count) {
                mix_values<X>(weights + row * stride + from - begin, stride, past.values(from), count, past.width,
                              out + row * past.width);
            });
        mix<Value, X - 1>(past, begin, end, rows - row, weights + row * stride, stride, out + row * past.width);
    }
}

// What a tile of queries works in.
struct Scores {
    Operand queries;
    float *scores;      // [queries, stride]
    float *mixtures;    // [queries, head_dim]
    float *totals;      // [queries]
    int64_t stride;
};

// Who wants the patterns of a tile, and by which numbers it knows the first row and head.
struct Patterns {
    Hooks hooks;
    int32_t row, head;
};

// Neighbouring queries [count, heads, width] from `position` on, count q_stride apart; their mixtures of
// values go to `out`, laid out alike.
template <class Format>
static void attend(const Past<typename Format::Weight> &past, const float *q, int64_t q_stride, int32_t count,
                   int32_t heads, int32_t position, float scale, int32_t window, const Patterns &patterns, Scores &own,
                   float *out) {
    const auto begin_of = [&](int32_t p) { return window > 0 && p >= window ? p - window + 1 : 0; };
    const int32_t width = past.width, last = position + count - 1;
    const int32_t begin = begin_of(position), end = position + 1, rows = count * heads;
    const int32_t common = begin_of(last) < end ? begin_of(last) : end;   // seen by all: from here to `end`
    for (int32_t i = 0; i < count; ++i) convert<Format>(q + i * q_stride, width, heads, width, own.queries, i * heads);
    stepwell_linear keys = {nullptr, nullptr, nullptr, BLOCK, width, 0};
    in_blocks(begin, last + 1, [&](int32_t from, int32_t length) {
        keys.weight = past.keys(from);
        multiply<Format>(keys, 0, length, own.queries, rows, own.scores + from - begin, own.stride);
    });
    memset(own.mixtures, 0, (int64_t)rows * width * sizeof(float));
    for (int32_t row = 0; row < rows; ++row) {
        const int32_t p = position + row / heads, first = begin_of(p);
        float *scores = own.scores + row * own.stride + first - begin;
        for (int32_t t = 0; t <= p - first; ++t) scores[t] *= scale;
        own.totals[row] = exponentials(scores, p - first + 1);
        patterns.hooks.touch_pattern(patterns.row + row / heads, patterns.head + row % heads, first, p - first + 1, scores,
                                     own.totals[row]);
        mix(past, first, common, 1, scores, own.stride, own.mixtures + row * width);
    }
    mix(past, common, end, rows, own.scores + common - begin, own.stride, own.mixtures);
    for (int32_t row = 0; row < rows; ++row) {
        const int32_t p = position + row / heads, rest = begin_of(p) > end ? begin_of(p) : end;
        float *mixture = own.mixtures + row * width, *to = out + row / heads * q_stride + row % heads * width;
        mix(past, rest, p + 1, 1, own.scores + row * own.stride + rest - begin, own.stride, mixture);
        for (int32_t d = 0; d < width; ++d) to[d] = mixture[d] / own.totals[row];
    }
}

}  // namespace STEPWELL_ISA
}  // namespace stepwell
