// AVX-512: 32 registers of 16 floats. Compiled with -mavx512f -mavx512dq -mavx512bw -mavx512vl -mfma.
#include "head_kernel.hpp"

namespace hpdval {
namespace {

struct Avx512 {
    static constexpr int LANES = 16, VECTORS = 2;
    static constexpr int rows(int vectors) { return vectors == 3 ? 9 : vectors == 2 ? 14 : 24; }
};

bool available() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
}

}  // namespace

const HeadIsa HEAD_AVX512 = head_isa<Avx512>("avx512", &available);

}  // namespace hpdval
