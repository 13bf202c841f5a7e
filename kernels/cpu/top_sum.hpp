// Sum of the k largest of n values, exactly, for as many classes side by side as a vector has lanes.
//
// Up to k = 64 a sorting network keeps the largest values so far in sorted order: no branch depends on the data. Above,
// the k-th largest value is found bit by bit, as the GPU kernel does. Values are finite (head_kernel.hpp handles NaN).
#pragma once

#include <utility>

#include "vectors.hpp"

namespace hpdval {
namespace {

constexpr float LOWEST = -3.4028234663852886e38f;
constexpr size_t LARGEST_NETWORK = 64;

// Comparators, each putting the larger value at its first place.
struct Network {
    int count = 0;
    int first[64] = {}, second[64] = {};

    constexpr void add(int a, int b) {
        first[count] = a;
        second[count] = b;
        ++count;
    }
};

// Batcher's odd-even merge sort (Knuth, TAOCP 3, 5.2.2 M), descending; 63 comparators for 16 values.
constexpr Network sorting_network(int size) {
    Network network;
    for (int p = 1; p < size; p *= 2)
        for (int k = p; k >= 1; k /= 2)
            for (int j = k % p; j + k < size; j += 2 * k)
                for (int i = 0; i < k && i + j + k < size; ++i)
                    if ((i + j) / (2 * p) == (i + j + k) / (2 * p)) network.add(i + j, i + j + k);
    return network;
}

template <int SIZE>
struct Sort {
    static constexpr Network network = sorting_network(SIZE);
};

template <typename Vector>
HPDVAL_INLINE void compare(Vector& a, Vector& b) {
    const Vector least = smaller(a, b);
    a = larger(a, b);
    b = least;
}

template <int SIZE, typename Vector, size_t... I>
HPDVAL_INLINE void run_network(Vector* values, std::index_sequence<I...>) {
    (compare(values[Sort<SIZE>::network.first[I]], values[Sort<SIZE>::network.second[I]]), ...);
}

// Sorts a bitonic sequence, descending.
template <int SIZE, typename Vector>
HPDVAL_INLINE void merge_bitonic(Vector* values) {
    if constexpr (SIZE > 1) {
        for (int i = 0; i < SIZE / 2; ++i) compare(values[i], values[i + SIZE / 2]);
        merge_bitonic<SIZE / 2>(values);
        merge_bitonic<SIZE / 2>(values + SIZE / 2);
    }
}

// Functions of their own from 16 values on, which is what registers hold; larger sorts merge two halves.
template <int SIZE, typename Vector>
__attribute__((noinline)) void merge_block(Vector* values) {
    merge_bitonic<SIZE>(values);
}

template <int SIZE, typename Vector>
__attribute__((noinline)) void sort_block(Vector* values) {
    run_network<SIZE>(values, std::make_index_sequence<Sort<SIZE>::network.count>{});
}

template <int SIZE, typename Vector>
HPDVAL_INLINE void merge(Vector* values) {
    if constexpr (SIZE <= 16) {
        merge_block<SIZE>(values);
    } else {
        for (int i = 0; i < SIZE / 2; ++i) compare(values[i], values[i + SIZE / 2]);
        merge<SIZE / 2>(values);
        merge<SIZE / 2>(values + SIZE / 2);
    }
}

template <int SIZE, typename Vector>
HPDVAL_INLINE void sort(Vector* values) {
    if constexpr (SIZE <= 16) {
        sort_block<SIZE>(values);
    } else {
        sort<SIZE / 2>(values);
        sort<SIZE / 2>(values + SIZE / 2);
        for (int i = 0; i < SIZE / 2; ++i) compare(values[i], values[SIZE - 1 - i]);
        merge<SIZE / 2>(values);
        merge<SIZE / 2>(values + SIZE / 2);
    }
}

// k <= SIZE. column[i * stride] is the i-th vector of values.
template <int LANES, int SIZE>
__attribute__((noinline)) Floats<LANES> top_sum_network(const float* column, size_t stride, size_t n, size_t k) {
    using Vector = Floats<LANES>;
    Vector best[SIZE], next[SIZE];
    const auto read = [&](Vector* values, size_t begin) {
        for (size_t i = 0; i < SIZE; ++i)
            values[i] = begin + i < n ? load<LANES>(column + (begin + i) * stride) : broadcast<LANES>(LOWEST);
    };
    read(best, 0);
    sort<SIZE>(best);
    for (size_t begin = SIZE; begin < n; begin += SIZE) {
        read(next, begin);
        sort<SIZE>(next);
        // The larger half of two descending sequences, one of them reversed, is bitonic.
        for (size_t i = 0; i < SIZE; ++i) best[SIZE - 1 - i] = larger(best[SIZE - 1 - i], next[i]);
        if (begin + SIZE < n || k < SIZE) merge<SIZE>(best);
    }
    Vector sum = best[0];
    for (size_t i = 1; i < k; ++i) sum += best[i];
    return sum;
}

// Float <-> integer of the same order; its own inverse.
template <int LANES>
HPDVAL_INLINE Ints<LANES> flip_negative(Ints<LANES> bits) {
    return bits ^ ((bits >> 31) & 0x7fffffff);
}

template <int LANES>
HPDVAL_INLINE Ints<LANES> key_at(const float* value) {
    return flip_negative<LANES>((Ints<LANES>)load<LANES>(value));
}

template <int LANES>
HPDVAL_INLINE bool any(Ints<LANES> mask) {
    Ints<LANES> found = mask;
    int32_t hit = 0;
    for (int i = 0; i < LANES; ++i) hit |= found[i];
    return hit != 0;
}

// Any k. Searches, lane by lane, the k-th largest key between the smallest and the largest.
template <int LANES>
__attribute__((noinline)) Floats<LANES> top_sum_bits(const float* column, size_t stride, size_t n, size_t k) {
    using Keys = Ints<LANES>;
    Keys low = key_at<LANES>(column), high = low;
    for (size_t i = 1; i < n; ++i) {
        const Keys key = key_at<LANES>(column + i * stride);
        low = smaller(low, key);
        high = larger(high, key);
    }
    // Halves [low, high] until only the keys above `low` and as many equal to it as are missing to k are left.
    const Keys wanted = broadcast<LANES>(static_cast<int32_t>(k));
    while (any<LANES>(low < high)) {
        const Keys middle = (low | high) - ((low ^ high) >> 1);  // the mean, rounded up, without overflow
        Keys count = {};
        for (size_t i = 0; i < n; ++i) count -= key_at<LANES>(column + i * stride) >= middle;
        const Keys below = middle - 1;
        low = count > wanted ? middle : (count == wanted ? below : low);
        high = count > wanted ? high : below;
    }
    Floats<LANES> sum = {};
    Keys above = {};
    for (size_t i = 0; i < n; ++i) {
        const Keys larger_than = key_at<LANES>(column + i * stride) > low;
        sum += (Floats<LANES>)((Ints<LANES>)load<LANES>(column + i * stride) & larger_than);
        above -= larger_than;
    }
    const Floats<LANES> tied = __builtin_convertvector(wanted - above, Floats<LANES>);
    return sum + tied * (Floats<LANES>)flip_negative<LANES>(low);
}

// 1 <= k <= n.
template <int LANES>
HPDVAL_INLINE Floats<LANES> top_sum(const float* column, size_t stride, size_t n, size_t k) {
    if (k <= 4) return top_sum_network<LANES, 4>(column, stride, n, k);
    if (k <= 8) return top_sum_network<LANES, 8>(column, stride, n, k);
    if (k <= 16) return top_sum_network<LANES, 16>(column, stride, n, k);
    if (k <= 32) return top_sum_network<LANES, 32>(column, stride, n, k);
    if (k <= LARGEST_NETWORK) return top_sum_network<LANES, 64>(column, stride, n, k);
    return top_sum_bits<LANES>(column, stride, n, k);
}

}  // namespace
}  // namespace hpdval
