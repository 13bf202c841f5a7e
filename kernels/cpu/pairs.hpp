// Numbers rounded to int16, two in each 32-bit lane, the first in the lower half (little-endian).
#pragma once

#include "vectors.hpp"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace hpdval {
namespace {

// Where one instruction multiplies pairs and adds the two products, twice as many multiply-adds as of float32.
#if defined(__SSE2__)
constexpr bool FAST_PAIRS = true;
#else
constexpr bool FAST_PAIRS = false;
#endif

// Numbers within +-32767 to the nearest, ties to even. Of NaN comes any number: the scores of such a row are NaN.
template <int LANES>
HPDVAL_INLINE Ints<LANES> round_to_int16(Floats<LANES> x) {
    const Floats<LANES> shift = broadcast<LANES>(0x1.8p23f);  // so large that the sum has no bits for a fraction
    return (Ints<LANES>)(x + shift) - (Ints<LANES>)shift;
}

// The lower halves of the lanes, one after the other: LANES / 2 pairs.
template <int LANES>
HPDVAL_INLINE void store_pairs(int32_t* pairs, Ints<LANES> numbers) {
    typedef int16_t Shorts __attribute__((vector_size(2 * LANES)));
    const Shorts narrow = __builtin_convertvector(numbers, Shorts);
    memcpy(pairs, &narrow, sizeof narrow);
}

// sums + a's first * b's first + a's second * b's second.
template <int LANES>
HPDVAL_INLINE Ints<LANES> add_pair_products(Ints<LANES> sums, Ints<LANES> a, Ints<LANES> b) {
#if defined(__AVX512BW__)
    if constexpr (LANES == 16) return sums + (Ints<LANES>)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#endif
#if defined(__AVX2__)
    if constexpr (LANES == 8) return sums + (Ints<LANES>)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#endif
#if defined(__SSE2__)
    if constexpr (LANES == 4) return sums + (Ints<LANES>)_mm_madd_epi16((__m128i)a, (__m128i)b);
#endif
    return sums + ((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
}

}  // namespace
}  // namespace hpdval
