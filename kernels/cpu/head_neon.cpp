// NEON of 64-bit Arm: 32 registers of 4 floats.
#include "head_kernel.hpp"

namespace hpdval {
namespace {

struct Neon {
    static constexpr int LANES = 4, VECTORS = 3;
    static constexpr int rows(int vectors) { return vectors == 4 ? 6 : vectors == 3 ? 8 : vectors == 2 ? 12 : 16; }
};

bool available() { return true; }

}  // namespace

const HeadIsa HEAD_NEON = head_isa<Neon>("neon", &available);

}  // namespace hpdval
