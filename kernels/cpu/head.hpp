// The dual-view head on raw pointers (paper eqs 4, 5, 8, 9); kernels/head.py is the specification.
//
//   scores[b,c] = alpha * cos(text_global[c], cls[b])
//               + (1 - alpha) * mean(k largest over n of cos(text_local[c], patches[b,n]))
//
// Rounding: text rows are scaled to unit length in double and stored in float32; everything else is float32. Dot
// products are summed in slices of 256, patch norms in several partial sums. With a bank of int16, the local view's unit
// rows, text and patches, are rounded to multiples of 1 / INT16_ONE and their products are summed exactly. A NaN or an
// infinity in a row makes every score NaN that the row enters. The similarities of an image exist only a panel of
// classes at a time.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace hpdval {

constexpr float EPS = 1e-12f;  // smallest norm divided by, so that a zero row stays zero

enum class Dtype { float32, float16, bfloat16 };

// Of the local view's text and products.
enum class Precision { float32, int16 };

// What 1 becomes in int16.
constexpr float INT16_ONE = 32767;

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
    const float* global;         // packed
    const float* local;          // packed; null in a bank of int16
    const int32_t* local_pairs;  // the same in int16, numbers 2i and 2i + 1 of a row as number i; null in float32
    const float* poison;  // [C, rounded up to whole vectors]: 0, or NaN where a text row holds a NaN or an infinity
    const float* local_poison;  // the same of the local rows alone
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
    decltype(run) run_int16;  // for banks of int16; null where it would not be faster
};

// Panels whose similarities with one image `run` holds at a time.
size_t head_group(const HeadShape& shape, const TextBank& bank);

// Floats of patches in float32 that `run` makes of those in half precision.
size_t head_rows(const HeadShape& shape);

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
