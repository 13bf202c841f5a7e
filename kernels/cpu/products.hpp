// In which numbers the dot products of patches and text_local are computed: a `Product` of head_kernel.hpp.
//
//   Unit     what rows are made of: depth(E) of them
//   Sums     running sums, one a lane
//   text     the bank's local rows, packed in units
//   prepare  writes a patch row's units, where they are not the row itself; returns what its sums are scaled by
//   add      sums + patch * text
//   finish   the scaled sums
#pragma once

#include "head.hpp"
#include "pairs.hpp"

namespace hpdval {
namespace {

// A NaN norm stays NaN.
HPDVAL_INLINE float inverse_norm(float norm) { return 1.0f / (norm < EPS ? EPS : norm); }

// float32: patches are multiplied where they lie.
struct Float32Product {
    using Unit = float;
    template <int LANES>
    using Sums = Floats<LANES>;

    static size_t depth(size_t width) { return width; }
    static const float* text(const TextBank& bank) { return bank.local; }

    template <int LANES>
    static float prepare(const float*, float norm, size_t, int32_t*) {
        return inverse_norm(norm);
    }

    template <int LANES>
    HPDVAL_INLINE static Floats<LANES> add(Floats<LANES> sums, Floats<LANES> patch, Floats<LANES> text) {
        return sums + patch * text;
    }

    template <int LANES>
    HPDVAL_INLINE static Floats<LANES> finish(Floats<LANES> sums, float scale) {
        return sums * broadcast<LANES>(scale);
    }
};

// Fixed point: the numbers of unit rows times INT16_ONE, two in a unit. By Cauchy and Schwarz no sum exceeds the
// product of two lengths, at most (INT16_ONE + sqrt(E) / 2)^2, below 2^31 for every E < 7e8: none overflows.
struct Int16Product {
    using Unit = int32_t;
    template <int LANES>
    using Sums = Ints<LANES>;

    static size_t depth(size_t width) { return (width + 1) / 2; }
    static const int32_t* text(const TextBank& bank) { return bank.local_pairs; }

    template <int LANES>
    static float prepare(const float* row, float norm, size_t width, int32_t* pairs) {
        const Floats<LANES> scale = broadcast<LANES>(INT16_ONE * inverse_norm(norm));
        size_t e = 0;
        for (; e + LANES <= width; e += LANES)
            store_pairs<LANES>(pairs + e / 2, round_to_int16<LANES>(load_unaligned<LANES>(row + e) * scale));
        float rest[LANES] = {};
        int32_t last[LANES / 2];
        memcpy(rest, row + e, (width - e) * sizeof(float));
        store_pairs<LANES>(last, round_to_int16<LANES>(load_unaligned<LANES>(rest) * scale));
        memcpy(pairs + e / 2, last, (depth(width) - e / 2) * sizeof(int32_t));
        // Integers cannot say that a row holds a NaN or an infinity.
        return 1.0f / (INT16_ONE * INT16_ONE) + norm * 0;
    }

    template <int LANES>
    HPDVAL_INLINE static Ints<LANES> add(Ints<LANES> sums, Ints<LANES> patch, Ints<LANES> text) {
        return add_pair_products<LANES>(sums, patch, text);
    }

    template <int LANES>
    HPDVAL_INLINE static Floats<LANES> finish(Ints<LANES> sums, float scale) {
        return __builtin_convertvector(sums, Floats<LANES>) * broadcast<LANES>(scale);
    }
};

}  // namespace
}  // namespace hpdval
