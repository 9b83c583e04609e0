// Vectors of the instruction set that this file is compiled for, and the few functions on them.
//
// Everything is spelled with the compiler's own vector types; intrinsics only where those fall short.
// No -ffast-math and no contraction: a result depends on the operands and the order written here alone.

#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"   // of GCC's own headers
#endif
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

namespace stepwell {
namespace STEPWELL_ISA {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef int32_t Ints __attribute__((vector_size(LANES * 4)));
typedef uint32_t Bits __attribute__((vector_size(LANES * 4)));
typedef uint16_t Halves __attribute__((vector_size(LANES * 2)));
typedef uint16_t bf16;

INLINE int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

INLINE Floats splat(float value) { return Floats{} + value; }

INLINE Floats load(const float *from) {
    Floats value;
    memcpy(&value, from, sizeof value);
    return value;
}

// bfloat16 is the upper half of a float32.
INLINE Floats load(const bf16 *from) {
    Halves halves;
    memcpy(&halves, from, sizeof halves);
    return (Floats)(__builtin_convertvector(halves, Ints) << 16);
}

INLINE void store(float *to, Floats value) { memcpy(to, &value, sizeof value); }

// To the nearest bfloat16, ties to even; NaN stays NaN.
INLINE bf16 to_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return (bf16)(value == value ? rounded : 0x7fc0);
}

INLINE float to_float(bf16 value) {
    const uint32_t bits = (uint32_t)value << 16;
    float result;
    memcpy(&result, &bits, sizeof result);
    return result;
}

INLINE float to_float(float value) { return value; }

// a * b + c, in one rounding where the instruction set has it.
INLINE Floats fma(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
    return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
    return _mm256_fmadd_ps(a, b, c);
#else
    return a * b + c;
#endif
}

INLINE Floats greater(Floats a, Floats b) { return a > b ? a : b; }

INLINE float sum(Floats value) {
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int lane = 0; lane < width; ++lane) value[lane] += value[lane + width];
    return value[0];
}

INLINE float highest(Floats value) {
    for (int lane = 1; lane < LANES; ++lane) value[0] = value[lane] > value[0] ? value[lane] : value[0];
    return value[0];
}

// The sums of four vectors, each by the same tree.
INLINE void sum4(Floats a, Floats b, Floats c, Floats d, float *out) {
#if defined(__AVX512F__)
    const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    const __m512 abcd = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))),
                                      _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))));
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
#elif defined(__AVX2__)
    const __m256 ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    const __m256 cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
    const __m256 abcd = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(_mm256_castps_pd(ab), _mm256_castps_pd(cd))),
                                      _mm256_castpd_ps(_mm256_unpackhi_pd(_mm256_castps_pd(ab), _mm256_castps_pd(cd))));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1)));
#else
    out[0] = (a[0] + a[2]) + (a[1] + a[3]);
    out[1] = (b[0] + b[2]) + (b[1] + b[3]);
    out[2] = (c[0] + c[2]) + (c[1] + c[3]);
    out[3] = (d[0] + d[2]) + (d[1] + d[3]);
#endif
}

// e^x within 2 ulp; 0 below -87, where float32 would be subnormal, and e^88 above 88. NaN stays NaN.
// x = n ln 2 + r, |r| <= ln 2 / 2 (Cephes' splitting of ln 2), and e^r = 1 + r + p r^2 with the
// polynomial of least relative error.
INLINE Floats exp(Floats x) {
    const Floats clamped = x > 88.0f ? splat(88.0f) : x;
    const Floats magic = splat(12582912.0f);   // 1.5 * 2^23: adding it rounds to an integer
    const Floats shifted = fma(clamped, splat(1.44269504f), magic);
    const Floats n = shifted - magic;
    const Floats r = fma(n, splat(2.12194440e-4f), fma(n, splat(-0.693359375f), clamped));
    Floats p = splat(0x1.6a23dp-10f);
    p = fma(p, r, splat(0x1.123a2p-7f));
    p = fma(p, r, splat(0x1.5558f2p-5f));
    p = fma(p, r, splat(0x1.555492p-3f));
    p = fma(p, r, splat(0x1.fffffcp-2f));
    p = fma(p, r, splat(1.0f));
    p = fma(p, r, splat(1.0f));
    const Bits power = ((Bits)shifted << 23) + (127 << 23);   // the low bits of `shifted` hold n
    const Floats result = p * (Floats)power;
    return x < -87.0f ? splat(0.0f) : x == x ? result : x;
}

}  // namespace STEPWELL_ISA
}  // namespace stepwell
