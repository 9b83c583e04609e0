// Attention of one row over the cache: the query heads that share a key head, block after block.
//
// Keys and values are read from position 0 on (or from where the window begins), in one order that
// depends on the row's position alone.

#pragma once

#include "elementwise.h"
#include "linear.h"

namespace stepwell {
namespace STEPWELL_ISA {

constexpr int BLOCK = STEPWELL_BLOCK;

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

// out[d] += sum over t of weights[t] * values[t][d], for `vectors` neighbouring vectors of channels.
template <int VECTORS, class Value>
INLINE void add_values(const float *weights, const Value *values, int32_t count, int32_t width, float *out) {
    Floats sums[VECTORS];
    for (int v = 0; v < VECTORS; ++v) sums[v] = load(out + v * LANES);
    for (int32_t t = 0; t < count; ++t) {
        const Floats weight = splat(weights[t]);
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v) sums[v] = fma(weight, load(values + (int64_t)t * width + v * LANES), sums[v]);
    }
    for (int v = 0; v < VECTORS; ++v) store(out + v * LANES, sums[v]);
}

template <class Value>
static void mix_values(const float *weights, const Value *values, int32_t count, int32_t width, float *out) {
    int32_t d = 0;
    for (; d + 4 * LANES <= width; d += 4 * LANES) add_values<4>(weights, values + d, count, width, out + d);
    for (; d + LANES <= width; d += LANES) add_values<1>(weights, values + d, count, width, out + d);
    for (; d < width; ++d)
        for (int32_t t = 0; t < count; ++t) out[d] += weights[t] * to_float(values[(int64_t)t * width + d]);
}

// Attention of `heads` queries [heads, width] at `position`; their mixtures of values go to `out`.
// scores: [heads, score_stride] to work in. queries: room for the queries in the cache's form.
template <class Format>
static void attend(const Past<typename Format::Weight> &past, const float *q, int32_t heads, int32_t position,
                   float scale, int32_t window, Operand &queries, float *scores, int64_t score_stride, float *out) {
    const int32_t start = window > 0 && position >= window ? position - window + 1 : 0;
    const int32_t end = position + 1;
    convert<Format>(q, past.width, heads, past.width, queries);
    stepwell_linear keys = {nullptr, nullptr, nullptr, BLOCK, past.width, 0};
    for (int32_t from = start; from < end;) {
        const int32_t count = (from / BLOCK + 1) * BLOCK < end ? (from / BLOCK + 1) * BLOCK - from : end - from;
        keys.weight = past.keys(from);
        multiply<Format>(keys, 0, count, queries, heads, scores + from - start, score_stride);
        from += count;
    }
    memset(out, 0, (int64_t)heads * past.width * sizeof(float));
    for (int32_t head = 0; head < heads; ++head) {
        float *own = scores + head * score_stride;
        for (int32_t t = 0; t < end - start; ++t) own[t] *= scale;
        const float total = exponentials(own, end - start);
        float *mixture = out + (int64_t)head * past.width;
        for (int32_t from = start; from < end;) {
            const int32_t count = (from / BLOCK + 1) * BLOCK < end ? (from / BLOCK + 1) * BLOCK - from : end - from;
            mix_values(own + from - start, past.values(from), count, past.width, mixture);
            from += count;
        }
        for (int32_t d = 0; d < past.width; ++d) mixture[d] /= total;
    }
}

}  // namespace STEPWELL_ISA
}  // namespace stepwell
