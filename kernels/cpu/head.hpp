// The dual-view head on raw pointers (paper eqs 4, 5, 8, 9); kernels/head.py is the specification.
//
//   scores[b,c] = alpha * cos(text_global[c], cls[b])
//               + (1 - alpha) * mean(k largest over n of cos(text_local[c], patches[b,n]))
//
// Rounding: text rows are scaled to unit length in double and stored in float32; everything else is float32. Dot
// products are summed in slices of 256, patch norms in several partial sums. A NaN or an infinity in a row makes every
// score NaN that the row enters. The similarities of an image exist only a panel of classes at a time.
#pragma once

#include <stddef.h>

namespace hpdval {

constexpr float EPS = 1e-12f;  // smallest norm divided by, so that a zero row stays zero

enum class Dtype { float32, float16, bfloat16 };

struct HeadShape {
    size_t images;   // B
    size_t patches;  // N, at least 1
    size_t width;    // E, at least 1
    size_t k;        // 1 <= k <= N
    Dtype dtype;     // of the patches
};

struct HeadArrays {
    const float* cls;      // [B, E]
    const void* patches;   // [B, N, E] of shape.dtype
    float* scores;         // [B, C]
    float* patch_scores;   // [B, N, C], or null when not wanted
};

// Classes [first, first + vectors * lanes) of a text bank, packed as [E, vectors * lanes] from float first * E on.
struct Panel {
    size_t first, vectors;
};

// Unit text rows in panels; the missing classes of the last one are zero rows.
struct TextBank {
    size_t classes;       // C
    size_t width;         // E
    size_t panel_width;   // classes of the widest panel
    size_t panel_count;
    const Panel* panels;
    const float* global;  // packed
    const float* local;   // packed
    const float* poison;  // [C, rounded up to whole vectors]: 0, or NaN where a text row holds a NaN or an infinity
};

// Images and panels [first, last) that one call computes.
struct HeadTask {
    size_t first_image, last_image, first_panel, last_panel;
};

// One instruction set.
struct HeadIsa {
    const char* name;
    size_t lanes;    // floats in a vector
    size_t vectors;  // vectors of classes in a panel; one more in the last one, where it would stand alone
    bool (*available)();
    void (*run)(const HeadShape&, const HeadArrays&, const TextBank&, float alpha, const HeadTask&, float* scratch);
};

// Panels whose similarities with one image `run` holds at a time.
size_t head_group(const HeadShape& shape, const TextBank& bank);

// Floats of scratch, 64-byte aligned, that `run` needs.
size_t head_scratch(const HeadShape& shape, const TextBank& bank);

extern const HeadIsa HEAD_AVX512, HEAD_AVX2, HEAD_NEON, HEAD_GENERIC;

// Those of this processor family, fastest first; the last one is always available.
constexpr const HeadIsa* HEAD_ISAS[] = {
#if defined(__x86_64__)
    &HEAD_AVX512, &HEAD_AVX2,
#elif defined(__aarch64__)
    &HEAD_NEON,
#endif
    &HEAD_GENERIC,
};

// Splits the work over at most `threads` threads, the caller's included.
void head(const HeadIsa& isa, const HeadShape& shape, const HeadArrays& arrays, const TextBank& bank, float alpha,
          size_t threads);

}  // namespace hpdval
