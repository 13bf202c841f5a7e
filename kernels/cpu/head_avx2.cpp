// AVX2 with FMA: 16 registers of 8 floats. Compiled with -mavx2 -mfma.
#include "head_kernel.hpp"

namespace hpdval {
namespace {

struct Avx2 {
    static constexpr int LANES = 8, VECTORS = 2;
    // 12 sums, the panel's vectors and a broadcast patch fill the registers.
    static constexpr int rows(int vectors) { return vectors == 3 ? 4 : vectors == 2 ? 6 : 12; }
};

bool available() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

}  // namespace

const HeadIsa HEAD_AVX2 = head_isa<Avx2>("avx2", &available);

}  // namespace hpdval
