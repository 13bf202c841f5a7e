// AVX2. A 22-bit weight is split in two 16-bit parts, so that one multiply-add takes two taps of eight samples; sums
// may wrap around in between, the last one never leaves 32 bits.
#include "preprocess.hpp"

#if defined(__x86_64__) || defined(_M_X64)

#include <immintrin.h>
#include <string.h>

#include "preprocess_nv12.hpp"

namespace hpdval {
namespace {

constexpr int BITS = 22;
constexpr int LOW_BITS = 15;

__m256i both_halves(__m128i half) { return _mm256_broadcastsi128_si256(half); }

// 16 bytes of one row and 16 of another.
__m256i load_two(const uint8_t* first, const uint8_t* second) {
    const __m128i low_u8x16 = _mm_loadu_si128(reinterpret_cast<const __m128i*>(first));
    const __m128i high_u8x16 = _mm_loadu_si128(reinterpret_cast<const __m128i*>(second));
    return _mm256_inserti128_si256(_mm256_castsi128_si256(low_u8x16), high_u8x16, 1);
}

// Shuffle that takes pixels t and t + 1 to 16-bit lanes R R G G B B 0 0.
template <int BYTES>
__m256i two_pixels(int t) {
    const char p = static_cast<char>(t * BYTES), q = static_cast<char>(t * BYTES + BYTES), z = -1;
    return both_halves(_mm_setr_epi8(p, z, q, z, static_cast<char>(p + 1), z, static_cast<char>(q + 1), z,
                                     static_cast<char>(p + 2), z, static_cast<char>(q + 2), z, z, z, z, z));
}

// Sums of two rows: the weights' high and low parts apart.
struct Sums {
    __m256i high_i32x8, low_i32x8;
    Sums() : high_i32x8(_mm256_setzero_si256()), low_i32x8(_mm256_set1_epi32(1 << (BITS - 1))) {}
    void add(__m256i levels_i16x16, __m256i high_i16x16, __m256i low_i16x16) {
        high_i32x8 = _mm256_add_epi32(high_i32x8, _mm256_madd_epi16(levels_i16x16, high_i16x16));
        low_i32x8 = _mm256_add_epi32(low_i32x8, _mm256_madd_epi16(levels_i16x16, low_i16x16));
    }
    __m256i levels() const {
        return _mm256_srai_epi32(_mm256_add_epi32(_mm256_slli_epi32(high_i32x8, LOW_BITS), low_i32x8), BITS);
    }
};

// Four bytes, the last of which the next pixel overwrites.
void store(uint8_t* out, int32_t pixel) { memcpy(out, &pixel, sizeof pixel); }

void store_rows(const RowBlock& block, size_t i, __m256i first_i32x8, __m256i second_i32x8) {
    const __m256i words_i16x16 = _mm256_packs_epi32(first_i32x8, second_i32x8);
    const __m256i bytes_u8x32 = _mm256_packus_epi16(words_i16x16, words_i16x16);
    const __m128i even = _mm256_castsi256_si128(bytes_u8x32), odd = _mm256_extracti128_si256(bytes_u8x32, 1);
    store(block.out[0] + 3 * i, _mm_cvtsi128_si32(even));
    store(block.out[1] + 3 * i, _mm_cvtsi128_si32(odd));
    store(block.out[2] + 3 * i, _mm_extract_epi32(even, 1));
    store(block.out[3] + 3 * i, _mm_extract_epi32(odd, 1));
}

template <int BYTES>
void horizontal_rows(const RowBlock& block, const Taps& x) {
    const __m256i first_two = two_pixels<BYTES>(0), last_two = two_pixels<BYTES>(2);
    for (size_t i = block.begin; i < block.end; ++i) {
        const int32_t* pair = x.pairs + i * x.taps;
        const size_t begin = (x.start[i] - block.origin) * BYTES;
        const size_t end = begin + x.count[i] * BYTES;
        Sums sums_ab, sums_cd;
        for (size_t at = begin; at < end; at += 4 * BYTES, pair += 4) {
            const __m256i ab_u8x32 = load_two(block.rows[0] + at, block.rows[1] + at);
            const __m256i cd_u8x32 = load_two(block.rows[2] + at, block.rows[3] + at);
            __m256i high = _mm256_set1_epi32(pair[0]), low = _mm256_set1_epi32(pair[1]);
            sums_ab.add(_mm256_shuffle_epi8(ab_u8x32, first_two), high, low);
            sums_cd.add(_mm256_shuffle_epi8(cd_u8x32, first_two), high, low);
            high = _mm256_set1_epi32(pair[2]), low = _mm256_set1_epi32(pair[3]);
            sums_ab.add(_mm256_shuffle_epi8(ab_u8x32, last_two), high, low);
            sums_cd.add(_mm256_shuffle_epi8(cd_u8x32, last_two), high, low);
        }
        store_rows(block, i, sums_ab.levels(), sums_cd.levels());
    }
}

void horizontal(const RowBlock& block, const Taps& x) {
    block.bytes == 3 ? horizontal_rows<3>(block, x) : horizontal_rows<4>(block, x);
}

__m256i load_words(const uint8_t* levels) {
    return _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(levels)));
}

void vertical(const uint8_t* const* rows, const Taps& y, size_t row, size_t samples, uint8_t* out) {
    const int32_t* pairs = y.pairs + row * y.taps;
    const size_t count = y.count[row];
    for (size_t i = 0; i < samples; i += 32) {
        Sums sums[4];
        for (size_t t = 0; t < count; t += 2) {
            const __m256i high = _mm256_set1_epi32(pairs[t]), low = _mm256_set1_epi32(pairs[t + 1]);
            // Behind the last row stands any other one; its weight is 0.
            const uint8_t* first = rows[t] + i;
            const uint8_t* second = rows[t + 1 < count ? t + 1 : t] + i;
            for (size_t h = 0; h < 2; ++h) {
                const __m256i a = load_words(first + 16 * h), b = load_words(second + 16 * h);
                sums[2 * h].add(_mm256_unpacklo_epi16(a, b), high, low);
                sums[2 * h + 1].add(_mm256_unpackhi_epi16(a, b), high, low);
            }
        }
        // Packing works within halves, as unpacking did, so the samples of 16 are in order again.
        const __m256i left = _mm256_packs_epi32(sums[0].levels(), sums[1].levels());
        const __m256i right = _mm256_packs_epi32(sums[2].levels(), sums[3].levels());
        const __m256i mixed_u8x32 = _mm256_packus_epi16(left, right);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), _mm256_permute4x64_epi64(mixed_u8x32, 0xd8));
    }
}

bool runs_here() { return __builtin_cpu_supports("avx2"); }

}  // namespace

const PreprocessIsa preprocess_avx2{"avx2", runs_here, horizontal, vertical, nv12_row};

}  // namespace hpdval

#endif
