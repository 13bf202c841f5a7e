// Any machine: vectors of 4 floats, which every 64-bit processor has.
#include "head_kernel.hpp"

namespace hpdval {
namespace {

struct Generic {
    static constexpr int LANES = 4, VECTORS = 2;
    static constexpr int rows(int vectors) { return vectors == 3 ? 2 : vectors == 2 ? 4 : 8; }
};

bool available() { return true; }

}  // namespace

const HeadIsa HEAD_GENERIC = head_isa<Generic>("generic", &available);

}  // namespace hpdval
