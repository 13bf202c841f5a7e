// The preprocess kernel without Python, for sanitizers and other processors: every instruction set against a plain
// two-pass resize, over sizes that reach every edge. Buffers end with the last pixel, so that a read past it shows.
#include <math.h>
#include <stdio.h>
#include <string.h>

#include <thread>

#include "preprocess.hpp"

namespace {

using namespace hpdval;

int failures = 0;

void check(bool ok, const char* what, const Geometry& g) {
    if (ok) return;
    ++failures;
    printf("FAILED %s: %zu x %zu to %zu x %zu, crop %zu x %zu at %zu, %zu, %s first\n", what, g.width, g.height,
           g.resized_width, g.resized_height, g.out_width, g.out_height, g.left, g.top,
           g.vertical_first ? "vertical" : "horizontal");
}

uint32_t random_state = 1;

uint8_t random_level() {
    random_state = random_state * 1664525u + 1013904223u;
    const uint32_t top = random_state >> 24;
    // Runs of extremes make the filter overshoot.
    return static_cast<uint8_t>(top < 60 ? 0 : top > 200 ? 255 : top);
}

std::vector<uint8_t> random_bytes(size_t count) {
    std::vector<uint8_t> bytes(count);
    for (uint8_t& byte : bytes) byte = random_level();
    return bytes;
}

// One pass over one line, straight from the plan's weights, in 64 bits.
uint8_t pass(const uint8_t* line, size_t step, const Axis& axis, size_t out) {
    int64_t sum = 1 << 21;
    for (size_t t = 0; t < axis.count[out]; ++t)
        sum += int64_t{axis.weights[out * axis.taps + t]} * line[(axis.start[out] + t) * step];
    const int64_t level = sum >> 22;
    return static_cast<uint8_t>(level < 0 ? 0 : level > 255 ? 255 : level);
}

std::vector<uint8_t> expected(const std::vector<uint8_t>& pixels, const Plan& plan) {
    const Geometry& g = plan.geometry;
    std::vector<uint8_t> between, out(3 * g.out_width * g.out_height);
    const size_t between_width = g.vertical_first ? g.width : g.out_width;
    const size_t between_height = g.vertical_first ? g.out_height : g.height;
    between.resize(3 * between_width * between_height);
    for (size_t y = 0; y < between_height; ++y)
        for (size_t i = 0; i < 3 * between_width; ++i)
            between[y * 3 * between_width + i] = g.vertical_first
                                                     ? pass(&pixels[i], 3 * g.width, plan.y, y)
                                                     : pass(&pixels[y * 3 * g.width + i % 3], 3, plan.x, i / 3);
    for (size_t y = 0; y < g.out_height; ++y)
        for (size_t i = 0; i < 3 * g.out_width; ++i)
            out[y * 3 * g.out_width + i] = g.vertical_first ? pass(&between[y * 3 * g.width + i % 3], 3, plan.x, i / 3)
                                                            : pass(&between[i], 3 * g.out_width, plan.y, y);
    return out;
}

void weights_add_up(const Plan& plan) {
    for (const Axis* axis : {&plan.x, &plan.y})
        for (size_t i = 0; i < axis->start.size(); ++i) {
            int64_t sum = 0;
            for (size_t t = 0; t < axis->count[i]; ++t) sum += axis->weights[i * axis->taps + t];
            check(llabs(sum - (1 << 22)) <= static_cast<int64_t>(axis->count[i]), "sum of weights", plan.geometry);
        }
}

// Four bytes a pixel, the last of them noise.
std::vector<uint8_t> widened(const std::vector<uint8_t>& pixels) {
    std::vector<uint8_t> wide;
    for (size_t i = 0; i < pixels.size(); i += 3) {
        wide.insert(wide.end(), pixels.begin() + static_cast<ptrdiff_t>(i), pixels.begin() + static_cast<ptrdiff_t>(i + 3));
        wide.push_back(random_level());
    }
    return wide;
}

void one_size(const Geometry& g, const PreprocessIsa& isa) {
    const Plan plan(g);
    weights_add_up(plan);
    const std::vector<uint8_t> pixels = random_bytes(3 * g.width * g.height), wide = widened(pixels);
    const std::vector<uint8_t> right = expected(pixels, plan);
    std::vector<uint8_t> out(right.size());
    Resizer whole(plan, isa, {out.data(), nullptr, 1, false});
    whole.push(pixels.data(), static_cast<ptrdiff_t>(3 * g.width), g.height, 3);
    check(out == right, isa.name, g);
    out.assign(right.size(), 1);
    Resizer bands(plan, isa, {out.data(), nullptr, 1, false});
    for (size_t y = 0; y < g.height; y += 3)
        bands.push(&wide[4 * g.width * y], static_cast<ptrdiff_t>(4 * g.width), g.height - y < 3 ? g.height - y : 3, 4);
    check(out == right && bands.rows_left() == 0, "bands", g);
    // A table whose words tell channel and level, and BGR.
    std::vector<uint16_t> table, words(right.size());
    for (uint16_t i = 0; i < 3 * 256; ++i) table.push_back(i);
    Resizer tabled(plan, isa, {words.data(), table.data(), 2, true});
    tabled.push(pixels.data(), static_cast<ptrdiff_t>(3 * g.width), g.height, 3);
    const size_t plane = g.out_width * g.out_height;
    bool same = true;
    for (size_t i = 0; i < plane; ++i)
        for (size_t c = 0; c < 3; ++c) same = same && words[c * plane + i] == 256 * c + right[3 * i + 2 - c];
    check(same, "table", g);
}

void nv12(size_t width, size_t height, const PreprocessIsa& isa) {
    const Geometry g{width, height, width, height, 0, 0, width, height, false};
    const Plan plan(g);
    const std::vector<uint8_t> luma = random_bytes(width * height), chroma = random_bytes(width * height / 2);
    std::vector<uint8_t> out(3 * width * height);
    Resizer resizer(plan, isa, {out.data(), nullptr, 1, false});
    resizer.push_nv12(luma.data(), static_cast<ptrdiff_t>(width), chroma.data(), static_cast<ptrdiff_t>(width));
    bool near = true;
    for (size_t y = 0; y < height; ++y)
        for (size_t x = 0; x < width; ++x) {
            const uint8_t* pair = &chroma[y / 2 * width + x / 2 * 2];
            const double grey = 1.164 * (luma[y * width + x] < 16 ? 0 : luma[y * width + x] - 16);
            const double u = pair[0] - 128.0, v = pair[1] - 128.0;
            const double colours[] = {grey + 1.596 * v, grey - 0.813 * v - 0.391 * u, grey + 2.018 * u};
            for (size_t c = 0; c < 3; ++c)
                near = near && fabs(fmin(fmax(colours[c], 0), 255) - out[3 * (y * width + x) + c]) < 0.501;
        }
    check(near, "nv12", g);
}

void in_threads(const PreprocessIsa& isa) {
    std::vector<std::thread> threads;
    const Geometry g{61, 47, 20, 30, 0, 0, 20, 30, false};
    const Plan plan(g);
    const std::vector<uint8_t> pixels = random_bytes(3 * g.width * g.height), right = expected(pixels, plan);
    std::vector<std::vector<uint8_t>> outs(8, std::vector<uint8_t>(right.size()));
    for (std::vector<uint8_t>& out : outs)
        threads.emplace_back([&] {
            Resizer resizer(plan, isa, {out.data(), nullptr, 1, false});
            resizer.push(pixels.data(), static_cast<ptrdiff_t>(3 * g.width), g.height, 3);
        });
    for (std::thread& thread : threads) thread.join();
    for (const std::vector<uint8_t>& out : outs) check(out == right, "threads", g);
}

}  // namespace

int main() {
    const size_t sides[] = {1, 2, 3, 5, 16, 23, 64, 130};
    for (const PreprocessIsa* isa : preprocess_isas()) {
        const int before = failures;
        for (const size_t width : sides)
            for (const size_t height : sides)
                for (const size_t to : {1, 4, 21, 64})
                    for (const bool vertical_first : {false, true}) {
                        if (vertical_first && (width == to || height == to)) continue;
                        one_size({width, height, to, to, 0, 0, to, to, vertical_first}, *isa);
                        const size_t cut = to / 3;
                        one_size({width, height, to, to, cut, cut / 2, to - cut, to - cut, vertical_first}, *isa);
                    }
        for (const size_t width : {2, 62, 64, 66, 130}) nv12(width, 6, *isa);
        in_threads(*isa);
        printf("%s: %s\n", isa->name, failures == before ? "right" : "wrong");
    }
    return failures != 0;
}
