// The dual-view head on raw pointers (paper eqs 4, 5, 8, 9); kernels/head.py is the specification.
//
//   scores[b,c] = alpha * cos(text_global[c], cls[b])
//               + (1 - alpha) * mean(k largest over n of cos(text_local[c], patches[b,n]))
//
// Rounding: norms are summed in double; unit rows, products and dot products are float32, dot products summed in
// blocks of 128; the k largest cosines are summed in double. A NaN or an infinity makes every score it enters NaN.
#pragma once

#include <stddef.h>

namespace hpdval {

struct HeadShape {
    size_t images;   // B
    size_t patches;  // N, at least 1
    size_t classes;  // C
    size_t width;    // E, at least 1
    size_t k;        // 1 <= k <= N
};

struct HeadArrays {
    const float* cls;          // [B, E]
    const float* patches;      // [B, N, E]
    const float* text_global;  // [C, E]
    const float* text_local;   // [C, E]
    float* scores;             // [B, C]
    float* patch_scores;       // [B, N, C], or null when not wanted
};

// Splits the images over at most `threads` threads, itself included.
void head_generic(const HeadShape& shape, const HeadArrays& arrays, float alpha, size_t threads);

}  // namespace hpdval
