// Uniform noise of whole vocabularies: Philox 4x32-10 (Salmon et al., 2011), four tokens a counter.
//
// Words of 32 bits are held in the lower halves of 64-bit lanes: a product needs room for both its
// words. What is in the upper halves is never looked at, as the products take the lower ones alone.

#pragma once

#include "simd.h"
#include "threads.h"

namespace stepwell {
namespace STEPWELL_ISA {

constexpr int PAIRS = LANES / 2;      // 64-bit lanes
constexpr int CHUNK = 64 * PAIRS;     // counters that a thread takes at a time

typedef uint64_t Words __attribute__((vector_size(PAIRS * 8)));

// The 64-bit products of the lower halves.
INLINE Words product(Words a, Words b) {
#if defined(__AVX512F__)
    return (Words)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (Words)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__x86_64__)
    return (Words)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
    return (a & 0xffffffff) * (b & 0xffffffff);
#endif
}

// The four words of each counter (block, rest) under the keys of `row`, an address of five words.
INLINE void philox(Words block, const uint32_t *row, Words (&words)[4]) {
    Words c0 = block, c1 = Words{} + row[2], c2 = Words{} + row[3], c3 = Words{} + row[4];
    uint32_t k0 = row[0], k1 = row[1];
    for (int round = 0; round < 10; ++round, k0 += 0x9e3779b9, k1 += 0xbb67ae85) {
        const Words p0 = product(c0, Words{} + 0xd2511f53), p1 = product(c2, Words{} + 0xcd9e8d57);
        c0 = (p1 >> 32) ^ c1 ^ k0;
        c1 = p1;
        c2 = (p0 >> 32) ^ c3 ^ k1;
        c3 = p0;
    }
    words[0] = c0, words[1] = c1, words[2] = c2, words[3] = c3;
}

// (r + 1/2) 2^-32 in one rounding, and never 1.
INLINE float unit(uint32_t word) {
    const float value = (float)(2 * (uint64_t)word + 1) * 0x1p-33f;
    return value < 0x1.fffffep-1f ? value : 0x1.fffffep-1f;
}

struct Noise {
    const uint32_t *addresses;   // [rows, 5]
    int32_t rows, tokens;
    float *out;                  // [rows, tokens]
};

// The noise of the tokens of `count` counters from `first` on.
static void fill(const Noise &noise, int32_t row, int32_t first, int32_t count) {
    Words block;
    for (int lane = 0; lane < PAIRS; ++lane) block[lane] = first + lane;
    float *out = noise.out + (int64_t)row * noise.tokens;
    for (int32_t at = first; at < first + count; at += PAIRS, block += PAIRS) {
        Words words[4];
        philox(block, noise.addresses + 5 * row, words);
        float values[PAIRS][4];
        for (int lane = 0; lane < PAIRS; ++lane)
            for (int i = 0; i < 4; ++i) values[lane][i] = unit((uint32_t)words[i][lane]);
        const int32_t left = noise.tokens - 4 * at;
        memcpy(out + 4 * at, values, (left < 4 * PAIRS ? left : 4 * PAIRS) * sizeof(float));
    }
}

static void fill_chunks(Member &member, void *argument) {
    const Noise &noise = *static_cast<const Noise *>(argument);
    const int32_t counters = (noise.tokens + 3) / 4, chunks = (counters + CHUNK - 1) / CHUNK;
    for (int32_t task; (task = take(member)) < noise.rows * chunks;) {
        const int32_t first = task % chunks * CHUNK;
        fill(noise, task / chunks, first, counters - first < CHUNK ? counters - first : CHUNK);
    }
}

static void uniform(const uint32_t *addresses, int32_t rows, int32_t tokens, float *out, int32_t threads) {
    Noise noise{addresses, rows, tokens, out};
    run_team(fill_chunks, &noise, threads);
}

}  // namespace STEPWELL_ISA
}  // namespace stepwell
