// Included by each instruction set's file, which compiles a copy of its own: hence the unnamed namespace and no
// templates of the standard library, which a linker could share with files for older machines.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "words of four bytes are put together for little-endian machines"
#endif

namespace hpdval {
namespace {

constexpr int NV12_BITS = 20;
constexpr size_t NV12_STEP = 64;  // pixels converted in one go; a multiple of 2

inline int32_t nv12_level(int32_t sum) {
    const int32_t level = sum >> NV12_BITS;
    return level < 0 ? 0 : level > 255 ? 255 : level;
}

// BT.601, limited range, rounded to 20 bits: R = 1.164 (Y - 16) + 1.596 (V - 128) and so on. RGBX.
inline void nv12_step(const uint8_t* luma, const uint8_t* chroma, size_t pixels, uint8_t* out) {
    int32_t red[NV12_STEP], green[NV12_STEP], blue[NV12_STEP];
    for (size_t i = 0; i < pixels / 2; ++i) {
        const int32_t u = chroma[2 * i] - 128, v = chroma[2 * i + 1] - 128;
        red[2 * i] = red[2 * i + 1] = 1673527 * v + (1 << (NV12_BITS - 1));
        green[2 * i] = green[2 * i + 1] = -852492 * v - 409993 * u + (1 << (NV12_BITS - 1));
        blue[2 * i] = blue[2 * i + 1] = 2116026 * u + (1 << (NV12_BITS - 1));
    }
    // Whole words instead of bytes: compilers turn this loop into vectors.
    uint32_t words[NV12_STEP];
    for (size_t i = 0; i < pixels; ++i) {
        const int32_t y = 1220542 * (luma[i] < 16 ? 0 : luma[i] - 16);
        words[i] = static_cast<uint32_t>(nv12_level(y + red[i]) | nv12_level(y + green[i]) << 8 |
                                         nv12_level(y + blue[i]) << 16);
    }
    memcpy(out, words, 4 * pixels);
}

void nv12_row(const uint8_t* luma, const uint8_t* chroma, size_t width, uint8_t* out) {
    for (size_t x = 0; x < width; x += NV12_STEP)
        nv12_step(luma + x, chroma + x, width - x < NV12_STEP ? width - x : NV12_STEP, out + 4 * x);
}

}  // namespace
}  // namespace hpdval
