#include "head.hpp"

#include <math.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <thread>
#include <vector>

namespace hpdval {
namespace {

constexpr size_t CLASSES = 32;  // classes per tile: compilers turn a loop this long into vector instructions
constexpr size_t BLOCK = 128;   // products summed in one go, which bounds the rounding error of long rows
constexpr double EPS = 1e-12;   // smallest norm divided by, so that a zero row stays zero

// out[e] = row[e] / max(||row||, EPS), written with a stride; the maximum lets a NaN norm through.
void unit_row(const float* row, size_t width, float* out, size_t stride) {
    double sum = 0.0;
    for (size_t e = 0; e < width; ++e) sum += static_cast<double>(row[e]) * row[e];
    const double norm = sqrt(sum);
    const double divisor = norm < EPS ? EPS : norm;
    for (size_t e = 0; e < width; ++e) out[e * stride] = static_cast<float>(row[e] / divisor);
}

// Unit text rows, transposed per tile to [C / CLASSES, E, CLASSES]; missing classes of the last tile are zero.
std::vector<float> pack_text(const float* text, size_t classes, size_t width) {
    std::vector<float> packed((classes + CLASSES - 1) / CLASSES * CLASSES * width, 0.0f);
    for (size_t c = 0; c < classes; ++c)
        unit_row(text + c * width, width, &packed[c / CLASSES * width * CLASSES + c % CLASSES], CLASSES);
    return packed;
}

// cosines[c] = <row, text[:, c]>; the classes are computed side by side, so no sum is reordered.
void tile_cosines(const float* row, const float* text, size_t width, float cosines[CLASSES]) {
    std::fill_n(cosines, CLASSES, 0.0f);
    for (size_t begin = 0; begin < width; begin += BLOCK) {
        float sums[CLASSES] = {};
        for (size_t e = begin; e < std::min(width, begin + BLOCK); ++e)
            for (size_t c = 0; c < CLASSES; ++c) sums[c] += row[e] * text[e * CLASSES + c];
        for (size_t c = 0; c < CLASSES; ++c) cosines[c] += sums[c];
    }
}

// Mean of the k largest of n values, which it reorders; NaN when a value is NaN (nth_element needs an order).
float top_mean(float* values, size_t n, size_t k) {
    for (size_t i = 0; i < n; ++i)
        if (values[i] != values[i]) return std::numeric_limits<float>::quiet_NaN();
    std::nth_element(values, values + (k - 1), values + n, std::greater<float>());
    double sum = 0.0;
    for (size_t i = 0; i < k; ++i) sum += values[i];
    return static_cast<float>(sum / k);
}

// What one thread needs; allocated before the thread starts, so that nothing throws inside it.
struct Scratch {
    explicit Scratch(const HeadShape& s)
        : cls(s.width), patches(s.patches * s.width), columns(CLASSES * s.patches) {}
    std::vector<float> cls;      // [E]: unit row
    std::vector<float> patches;  // [N, E]: unit rows
    std::vector<float> columns;  // [CLASSES, N]: cosines of one class tile, one row per class
};

class Head {
public:
    Head(const HeadShape& shape, const HeadArrays& arrays, float alpha)
        : shape_(shape), arrays_(arrays), alpha_(alpha),
          text_global_(pack_text(arrays.text_global, shape.classes, shape.width)),
          text_local_(pack_text(arrays.text_local, shape.classes, shape.width)) {}

    void images(size_t begin, size_t end, Scratch& scratch) const noexcept {
        for (size_t b = begin; b < end; ++b) image(b, scratch);
    }

private:
    void image(size_t b, Scratch& scratch) const noexcept {
        const size_t width = shape_.width;
        unit_row(arrays_.cls + b * width, width, scratch.cls.data(), 1);
        for (size_t n = 0; n < shape_.patches; ++n)
            unit_row(arrays_.patches + (b * shape_.patches + n) * width, width, &scratch.patches[n * width], 1);
        for (size_t first = 0; first < shape_.classes; first += CLASSES) class_tile(b, first, scratch);
    }

    void class_tile(size_t b, size_t first, Scratch& scratch) const noexcept {
        const size_t count = std::min(CLASSES, shape_.classes - first);
        const size_t text = first * shape_.width;
        float global[CLASSES];
        tile_cosines(scratch.cls.data(), &text_global_[text], shape_.width, global);
        patch_cosines(b, first, count, scratch);
        for (size_t c = 0; c < count; ++c) {
            const float local = top_mean(&scratch.columns[c * shape_.patches], shape_.patches, shape_.k);
            arrays_.scores[b * shape_.classes + first + c] = alpha_ * global[c] + (1.0f - alpha_) * local;
        }
    }

    void patch_cosines(size_t b, size_t first, size_t count, Scratch& scratch) const noexcept {
        for (size_t n = 0; n < shape_.patches; ++n) {
            float cosines[CLASSES];
            tile_cosines(&scratch.patches[n * shape_.width], &text_local_[first * shape_.width], shape_.width, cosines);
            for (size_t c = 0; c < count; ++c) scratch.columns[c * shape_.patches + n] = cosines[c];
            if (arrays_.patch_scores == nullptr) continue;
            std::copy_n(cosines, count, arrays_.patch_scores + (b * shape_.patches + n) * shape_.classes + first);
        }
    }

    const HeadShape shape_;
    const HeadArrays arrays_;
    const float alpha_;
    const std::vector<float> text_global_, text_local_;
};

// Joins on every way out, also when a later thread could not be started.
struct Joined {
    std::vector<std::thread> threads;
    ~Joined() {
        for (std::thread& thread : threads) thread.join();
    }
};

}  // namespace

void head_generic(const HeadShape& shape, const HeadArrays& arrays, float alpha, size_t threads) {
    if (shape.images == 0 || shape.classes == 0) return;
    const size_t parts = std::max<size_t>(1, std::min(threads, shape.images));
    const Head head(shape, arrays, alpha);
    std::vector<Scratch> scratch(parts, Scratch(shape));
    const auto part = [&](size_t i) {
        head.images(shape.images * i / parts, shape.images * (i + 1) / parts, scratch[i]);
    };
    Joined others;
    others.threads.reserve(parts - 1);
    for (size_t i = 1; i < parts; ++i) others.threads.emplace_back(part, i);
    part(0);
}

}  // namespace hpdval
