// Pillow's weights: libImaging/Resample.c, precompute_coeffs and normalize_coeffs_8bpc, operation by operation.
#include <algorithm>
#include <cmath>

#include "preprocess.hpp"

namespace hpdval {
namespace {

constexpr double SUPPORT = 2.0;  // of the bicubic filter, in output pixels
constexpr int BITS = 22;         // of the fixed-point weights
constexpr int LOW_BITS = 15;     // so that both parts of a weight fit 16 signed bits

double bicubic(double x) {
    constexpr double a = -0.5;
    x = std::fabs(x);
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
    return 0.0;
}

int32_t fixed_point(double weight) {
    return static_cast<int32_t>((weight < 0 ? -0.5 : 0.5) + weight * (1 << BITS));
}

// weight = high * 2^15 + low with low in [0, 2^15); two taps' parts share 32 bits, the first in the lower half.
int32_t two_halves(int32_t first, int32_t second) {
    return static_cast<int32_t>(static_cast<uint32_t>(first & 0xffff) | static_cast<uint32_t>(second & 0xffff) << 16);
}

void fill_pairs(Axis& axis) {
    axis.pairs.resize(axis.weights.size());
    for (size_t t = 0; t < axis.weights.size(); t += 2) {
        const int32_t first = axis.weights[t], second = axis.weights[t + 1];
        axis.pairs[t] = two_halves(first >> LOW_BITS, second >> LOW_BITS);
        axis.pairs[t + 1] = two_halves(first & ((1 << LOW_BITS) - 1), second & ((1 << LOW_BITS) - 1));
    }
}

// Every output is one input pixel, as it is.
Axis identity(size_t first, size_t out) {
    Axis axis{{}, std::vector<size_t>(out, 1), std::vector<int32_t>(out * 4, 0), {}, 4, true};
    for (size_t i = 0; i < out; ++i) {
        axis.start.push_back(first + i);
        axis.weights[i * 4] = 1 << BITS;
    }
    return axis;
}

// Outputs [first, first + out) of a resize from `in` to `resized` pixels.
Axis resize(size_t in, size_t resized, size_t first, size_t out) {
    const double scale = static_cast<double>(in) / static_cast<double>(resized);
    const double filter_scale = std::max(scale, 1.0), support = SUPPORT * filter_scale, step = 1.0 / filter_scale;
    const size_t most = std::min(in, static_cast<size_t>(std::ceil(support)) * 2 + 1), taps = (most + 3) / 4 * 4;
    Axis axis{{}, {}, std::vector<int32_t>(out * taps, 0), {}, taps, false};
    std::vector<double> exact(most);
    for (size_t i = 0; i < out; ++i) {
        const double centre = (static_cast<double>(first + i) + 0.5) * scale;
        const size_t start = static_cast<size_t>(std::max(centre - support + 0.5, 0.0));
        const size_t count = std::min(static_cast<size_t>(centre + support + 0.5), in) - start;
        double sum = 0.0;
        for (size_t t = 0; t < count; ++t) {
            exact[t] = bicubic((static_cast<double>(t + start) - centre + 0.5) * step);
            sum += exact[t];
        }
        for (size_t t = 0; t < count; ++t) axis.weights[i * taps + t] = fixed_point(exact[t] / sum);
        axis.start.push_back(start);
        axis.count.push_back(count);
    }
    return axis;
}

Axis make_axis(size_t in, size_t resized, size_t first, size_t out) {
    Axis axis = in == resized ? identity(first, out) : resize(in, resized, first, out);
    fill_pairs(axis);
    return axis;
}

}  // namespace

Plan::Plan(const Geometry& g)
    : geometry(g), x(make_axis(g.width, g.resized_width, g.left, g.out_width)),
      y(make_axis(g.height, g.resized_height, g.top, g.out_height)), first_row(y.start.front()),
      end_row(y.start.back() + y.count.back()), most_rows(*std::max_element(y.count.begin(), y.count.end())) {}

}  // namespace hpdval
