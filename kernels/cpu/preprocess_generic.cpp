// The portable member of the family: compilers turn its fixed-length loops into whatever vectors the baseline has.
#include "preprocess.hpp"
#include "preprocess_nv12.hpp"

namespace hpdval {
namespace {

constexpr int BITS = 22;
constexpr int32_t HALF = 1 << (BITS - 1);
constexpr size_t LANES = 16;  // samples of the vertical pass summed side by side

uint8_t clip(int32_t sum) {
    const int32_t level = sum >> BITS;
    return static_cast<uint8_t>(level < 0 ? 0 : level > 255 ? 255 : level);
}

template <size_t BYTES>
void horizontal_row(const uint8_t* row, size_t origin, size_t begin, size_t end, const Taps& x, uint8_t* out) {
    for (size_t i = begin; i < end; ++i) {
        const uint8_t* pixel = row + (x.start[i] - origin) * BYTES;
        const int32_t* weights = &x.weights[i * x.taps];
        int32_t red = HALF, green = HALF, blue = HALF;
        for (size_t t = 0; t < x.count[i]; ++t, pixel += BYTES) {
            red += weights[t] * pixel[0];
            green += weights[t] * pixel[1];
            blue += weights[t] * pixel[2];
        }
        out[3 * i] = clip(red);
        out[3 * i + 1] = clip(green);
        out[3 * i + 2] = clip(blue);
    }
}

void horizontal(const RowBlock& block, const Taps& x) {
    const auto one_row = block.bytes == 3 ? horizontal_row<3> : horizontal_row<4>;
    for (size_t r = 0; r < block.count; ++r)
        one_row(block.rows[r], block.origin, block.begin, block.end, x, block.out[r]);
}

void vertical(const uint8_t* const* rows, const Taps& y, size_t row, size_t samples, uint8_t* out) {
    const int32_t* weights = &y.weights[row * y.taps];
    for (size_t i = 0; i < samples; i += LANES) {
        int32_t sums[LANES];
        for (size_t s = 0; s < LANES; ++s) sums[s] = HALF;
        for (size_t t = 0; t < y.count[row]; ++t)
            for (size_t s = 0; s < LANES; ++s) sums[s] += weights[t] * rows[t][i + s];
        for (size_t s = 0; s < LANES; ++s) out[i + s] = clip(sums[s]);
    }
}

bool runs_here() { return true; }

}  // namespace

const PreprocessIsa preprocess_generic{"generic", runs_here, horizontal, vertical, nv12_row};

}  // namespace hpdval
