// What happens to a row between its linear layers: normalisation, rotation, activation, softmax.

#pragma once

#include "simd.h"
#include "stepwell.h"

namespace stepwell {
namespace STEPWELL_ISA {

// The sum over a row of `term(value)`, lane by lane in order, then by one tree.
template <class Term>
INLINE float sum_over(const float *x, int32_t width, Term term) {
    Floats lanes = {};
    int32_t k = 0;
    for (; k + LANES <= width; k += LANES) lanes += term(load(x + k));
    float total = sum(lanes);
    for (; k < width; ++k) total += term(splat(x[k]))[0];
    return total;
}

// RMSNorm (Zhang and Sennrich 2019) or LayerNorm (Ba et al. 2016) of one row; `out` may be `x`.
static void normalize(const stepwell_norm &norm, const float *x, int32_t width, float *out) {
    const float mean = norm.centred ? sum_over(x, width, [](Floats v) { return v; }) / width : 0.0f;
    const float square = sum_over(x, width, [mean](Floats v) { return (v - mean) * (v - mean); }) / width;
    const float scale = 1.0f / __builtin_sqrtf(square + norm.eps);
    if (norm.bias == nullptr) {
        for (int32_t k = 0; k < width; ++k) out[k] = (x[k] - mean) * scale * norm.weight[k];
    } else {
        for (int32_t k = 0; k < width; ++k) out[k] = (x[k] - mean) * scale * norm.weight[k] + norm.bias[k];
    }
}

// Rotates each pair of channels (d, d + width / 2) of a head by its position's angle (Su et al. 2021).
static void rotate(float *head, const float *cosines, const float *sines, int32_t width) {
    const int32_t half = width / 2;
    for (int32_t d = 0; d < half; ++d) {
        const float first = head[d], second = head[d + half];
        head[d] = first * cosines[d] - second * sines[d];
        head[d + half] = second * cosines[d + half] + first * sines[d + half];
    }
}

// erf, to 1.5e-7: Abramowitz and Stegun, 7.1.26.
INLINE Floats erf(Floats x) {
    const Floats size = x < 0.0f ? -x : x;
    const Floats t = 1.0f / fma(splat(0.3275911f), size, splat(1.0f));
    Floats p = splat(1.061405429f);
    p = fma(p, t, splat(-1.453152027f));
    p = fma(p, t, splat(1.421413741f));
    p = fma(p, t, splat(-0.284496736f));
    p = fma(p, t, splat(0.254829592f));
    const Floats upper = 1.0f - p * t * exp(-size * size);
    return x < 0.0f ? -upper : upper;
}

INLINE Floats activate(Floats x, int32_t activation) {
    switch (activation) {
        case STEPWELL_SILU: return x / (1.0f + exp(-x));
        case STEPWELL_GELU: return 0.5f * x * (1.0f + erf(x * 0.70710678f));
        case STEPWELL_GELU_TANH:   // 0.5 (1 + tanh u) = 1 / (1 + e^-2u)
            return x / (1.0f + exp(-1.5957691216f * (x + 0.044715f * x * x * x)));
        default: return x < 0.0f ? splat(0.0f) : x;
    }
}

// act(gate) * up, or act(up) without a gate; the rows are padded to whole vectors.
static void activate_row(const float *gate, const float *up, int32_t count, int32_t activation, float *out) {
    float buffer[LANES];
    for (int32_t k = 0; k < count; k += LANES) {
        const Floats value = gate != nullptr ? activate(load(gate + k), activation) * load(up + k)
                                             : activate(load(up + k), activation);
        if (k + LANES <= count) {
            store(out + k, value);
        } else {
            store(buffer, value);
            memcpy(out + k, buffer, (count - k) * sizeof(float));
        }
    }
}

// e^(x - max x) in place, scores padded to whole vectors; returns the sum, which is at least 1.
static float exponentials(float *scores, int32_t count) {
    const int32_t padded = (int32_t)round_up(count, LANES);
    for (int32_t k = count; k < padded; ++k) scores[k] = -__builtin_inff();
    Floats top = load(scores);
    for (int32_t k = LANES; k < padded; k += LANES) top = greater(load(scores + k), top);
    const float most = highest(top);
    Floats total = {};
    for (int32_t k = 0; k < padded; k += LANES) {
        const Floats value = exp(load(scores + k) - most);
        store(scores + k, value);
        total += value;
    }
    return sum(total);
}

}  // namespace STEPWELL_ISA
}  // namespace stepwell
