// Half precision to float32, exactly, in integer arithmetic that compilers turn into vector instructions.
#pragma once

#include "vectors.hpp"

namespace hpdval {
namespace {

HPDVAL_INLINE float float_of_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

HPDVAL_INLINE uint32_t bits_of_float(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

HPDVAL_INLINE float widen_bfloat16(uint16_t x) { return float_of_bits(static_cast<uint32_t>(x) << 16); }

HPDVAL_INLINE float widen_float16(uint16_t x) {
    const uint32_t magnitude = static_cast<uint32_t>(x & 0x7fff) << 13, sign = static_cast<uint32_t>(x & 0x8000) << 16;
    // The exponent's bias is 15 in float16 and 127 in float32; the product also makes subnormal numbers normal.
    const uint32_t finite = bits_of_float(float_of_bits(magnitude) * 0x1p112f);
    const uint32_t special = magnitude | 0x7f800000;  // infinity, NaN
    return float_of_bits(((x & 0x7c00) == 0x7c00 ? special : finite) | sign);
}

}  // namespace
}  // namespace hpdval
