// Vectors of 32-bit lanes as the compiler's own extension (GCC, Clang): one source for every instruction set.
//
// Everything lies in an unnamed namespace. Each head_<isa>.cpp is compiled with other flags, and a function that two of
// them shared would be merged by the linker into one, perhaps one that this machine cannot run.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define HPDVAL_INLINE inline __attribute__((always_inline))

namespace hpdval {
namespace {

template <int LANES>
struct Lanes {
    typedef float Floats __attribute__((vector_size(4 * LANES)));
    typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
    typedef float Unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
    typedef float Aligned __attribute__((vector_size(4 * LANES), may_alias));
};

template <int LANES>
using Floats = typename Lanes<LANES>::Floats;

template <int LANES>
using Ints = typename Lanes<LANES>::Ints;

template <int LANES>
HPDVAL_INLINE Floats<LANES> load(const float* from) {
    return *reinterpret_cast<const typename Lanes<LANES>::Aligned*>(from);
}

template <int LANES>
HPDVAL_INLINE Ints<LANES> load(const int32_t* from) {
    return (Ints<LANES>)*reinterpret_cast<const typename Lanes<LANES>::Aligned*>(from);
}

template <int LANES>
HPDVAL_INLINE Floats<LANES> load_unaligned(const float* from) {
    return *reinterpret_cast<const typename Lanes<LANES>::Unaligned*>(from);
}

template <int LANES>
HPDVAL_INLINE void store(float* to, Floats<LANES> x) {
    *reinterpret_cast<typename Lanes<LANES>::Aligned*>(to) = x;
}

// x - 0 is x for every x, NaN and -0 included, so this is one broadcast instruction.
template <int LANES>
HPDVAL_INLINE Floats<LANES> broadcast(float x) {
    return x - Floats<LANES>{};
}

template <int LANES>
HPDVAL_INLINE Ints<LANES> broadcast(int32_t x) {
    return x - Ints<LANES>{};
}

template <typename Vector>
HPDVAL_INLINE Vector larger(Vector a, Vector b) {
    return a > b ? a : b;
}

template <typename Vector>
HPDVAL_INLINE Vector smaller(Vector a, Vector b) {
    return a < b ? a : b;
}

}  // namespace
}  // namespace hpdval
