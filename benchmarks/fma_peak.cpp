// GFLOP/s of independent fused multiply-adds in registers on one core; benchmarks/head.py compiles it with -march=native.
#include <chrono>

#if defined(__AVX512F__)
typedef float Vector __attribute__((vector_size(64)));
#elif defined(__AVX2__)
typedef float Vector __attribute__((vector_size(32)));
#else
typedef float Vector __attribute__((vector_size(16)));
#endif

extern "C" double fma_peak(int rounds) {
    constexpr int SUMS = 12;
    Vector sums[SUMS], factor = {}, term = {};
    factor = factor + 0.999f;
    term = term + 1e-4f;
    for (Vector& sum : sums) sum = term;
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < rounds; ++i) {
        for (Vector& sum : sums) sum = sum * factor + term;
        // Keeps the compiler from folding the rounds.
        asm volatile("");
    }
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - begin;
    for (Vector& sum : sums) asm volatile("" : : "m"(sum));
    return 2.0 * SUMS * rounds * (sizeof(Vector) / sizeof(float)) / time.count() / 1e9;
}
