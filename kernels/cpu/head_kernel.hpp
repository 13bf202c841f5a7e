// The dual-view head for one instruction set; head_<isa>.cpp includes this with its flags and its `Isa`:
//
//   struct Isa { static constexpr int LANES, VECTORS; static constexpr int rows(int vectors); };
//
// LANES * VECTORS classes make a panel of the text bank, the last one from 1 to VECTORS + 1 vectors; rows(v) patches
// times v vectors of classes are computed in registers at a time. `Product` says in which numbers (products.hpp). Only
// this file and what it includes may be compiled with an instruction set's flags.
#pragma once

#include <type_traits>

#include "head.hpp"
#include "products.hpp"
#include "top_sum.hpp"
#include "widen.hpp"

namespace hpdval {
namespace {

// Depth of one pass over a panel, so that its slice stays in the first-level cache; also bounds the rounding error.
constexpr size_t DEPTH = 256;
// Units of patches that all panels of a group are multiplied with before the next patches are read; with the slices,
// what a second-level cache of 512 KiB holds.
constexpr size_t CHUNK = 96 * 1024;
constexpr size_t CACHE_LINE = 16;  // units

template <class Isa, class Product>
class HeadKernel {
    static constexpr int LANES = Isa::LANES;
    using Vector = Floats<LANES>;
    using Unit = typename Product::Unit;
    using Sums = typename Product::template Sums<LANES>;

public:
    HeadKernel(const HeadShape& shape, const HeadArrays& arrays, const TextBank& bank, float alpha, float* scratch)
        : shape_(shape), arrays_(arrays), bank_(bank), alpha_(alpha), depth_(Product::depth(shape.width)),
          tiles_(scratch), scales_(tiles_ + head_group(shape, bank) * shape.patches * bank.panel_width),
          rows_(scales_ + shape.patches), pairs_(reinterpret_cast<int32_t*>(rows_ + head_rows(shape))) {}

    static void run(const HeadShape& shape, const HeadArrays& arrays, const TextBank& bank, float alpha,
                    const HeadTask& task, float* scratch) {
        HeadKernel kernel(shape, arrays, bank, alpha, scratch);
        for (size_t b = task.first_image; b < task.last_image; ++b) kernel.image(b, task);
    }

private:
    void image(size_t b, const HeadTask& task) {
        const float* patches = wide_patches(b);
        const Unit* units = units_of(patches);
        const float* cls = arrays_.cls + b * shape_.width;
        const float cls_norm = row_norm(cls, shape_.width);
        poison_ = cls_norm * 0;
        cls_inverse_ = inverse_norm(cls_norm);
        const size_t group = head_group(shape_, bank_);
        for (size_t first = task.first_panel; first < task.last_panel; first += group) {
            const size_t last = smaller_size(first + group, task.last_panel);
            similarities(patches, units, first, last, first == task.first_panel);
            for (size_t p = first; p < last; ++p)
                with_vectors(bank_.panels[p], [&](auto vectors) {
                    finish<vectors.value>(b, cls, bank_.panels[p].first, tile_of(p, first));
                });
        }
    }

    // Fills the tiles of panels [first, last); `fresh` when these patches are not prepared yet.
    void similarities(const float* patches, const Unit* units, size_t first, size_t last, bool fresh) {
        const size_t rows = larger_size(CHUNK / depth_, 1);
        for (size_t n = 0; n < shape_.patches; n += rows) {
            const size_t end = smaller_size(n + rows, shape_.patches);
            if (fresh) prepare(patches, n, end);
            for (size_t p = first; p < last; ++p)
                with_vectors(bank_.panels[p], [&](auto vectors) {
                    const Unit* text = Product::text(bank_) + bank_.panels[p].first * depth_;
                    tile<vectors.value>(units, text, tile_of(p, first), n, end);
                });
        }
    }

    void prepare(const float* patches, size_t begin, size_t end) {
        for (size_t n = begin; n < end; ++n) {
            const float* row = patches + n * shape_.width;
            const float norm = row_norm(row, shape_.width);
            scales_[n] = Product::template prepare<LANES>(row, norm, shape_.width, pairs_ + n * depth_);
            poison_ += norm * 0;
        }
    }

    const Unit* units_of(const float* patches) const {
        if constexpr (std::is_same_v<Unit, float>)
            return patches;
        else
            return pairs_;
    }

    float* tile_of(size_t p, size_t first) { return tiles_ + (p - first) * shape_.patches * bank_.panel_width; }

    const float* wide_patches(size_t b) {
        const size_t count = shape_.patches * shape_.width;
        if (shape_.dtype == Dtype::float32) return static_cast<const float*>(arrays_.patches) + b * count;
        const uint16_t* narrow = static_cast<const uint16_t*>(arrays_.patches) + b * count;
        if (shape_.dtype == Dtype::float16)
            for (size_t i = 0; i < count; ++i) rows_[i] = widen_float16(narrow[i]);
        else
            for (size_t i = 0; i < count; ++i) rows_[i] = widen_bfloat16(narrow[i]);
        return rows_;
    }

    static float row_norm(const float* row, size_t width) {
        Vector sums[4] = {};
        size_t e = 0;
        for (; e + 4 * LANES <= width; e += 4 * LANES)
            for (int i = 0; i < 4; ++i) {
                const Vector x = load_unaligned<LANES>(row + e + i * LANES);
                sums[i] += x * x;
            }
        const Vector all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
        float sum = 0;
        for (int i = 0; i < LANES; ++i) sum += all[i];
        for (; e < width; ++e) sum += row[e] * row[e];
        return __builtin_sqrtf(sum);
    }

    template <int VECTORS>
    struct Constant {
        static constexpr int value = VECTORS;
    };

    // Calls `work` with the panel's number of vectors as a constant.
    template <class Work>
    void with_vectors(const Panel& panel, const Work& work) {
        if (panel.vectors == Isa::VECTORS) return work(Constant<Isa::VECTORS>());
        if (panel.vectors == Isa::VECTORS + 1) return work(Constant<Isa::VECTORS + 1>());
        if constexpr (Isa::VECTORS > 2) {
            if (panel.vectors == 2) return work(Constant<2>());
        }
        work(Constant<1>());
    }

    // out[n, :] = cosines of patches [begin, end) with a panel.
    template <int VECTORS>
    void tile(const Unit* patches, const Unit* text, float* out, size_t begin, size_t end) {
        const size_t width = VECTORS * LANES;
        for (size_t e = 0; e < depth_; e += DEPTH) {
            const size_t depth = smaller_size(DEPTH, depth_ - e);
            const size_t calls = larger_size((end - begin) / Isa::rows(VECTORS), 1);
            const size_t lines = (depth * width / CACHE_LINE + calls - 1) / calls;
            const Pass pass{depth, lines, e == 0, e + depth == depth_};
            rows_of<Isa::rows(VECTORS), VECTORS>(begin, end, patches + e, text + e * width, out, pass);
        }
    }

    // Scores of the panel from class `first` on, from its cosines [N, VECTORS * LANES].
    template <int VECTORS>
    void finish(size_t b, const float* cls, size_t first, const float* similarity) {
        const size_t width = VECTORS * LANES;
        const size_t count = smaller_size(width, bank_.classes - first);
        alignas(64) float whole[VECTORS * LANES], out[VECTORS * LANES];
        one_row<VECTORS>(cls, bank_.global + first * shape_.width, whole);
        const float global_weight = alpha_ * cls_inverse_, local_weight = (1 - alpha_) / static_cast<float>(shape_.k);
        for (int v = 0; v < VECTORS; ++v) {
            const Vector best = top_sum<LANES>(similarity + v * LANES, width, shape_.patches, shape_.k);
            const Vector poison = load<LANES>(bank_.poison + first + v * LANES) + poison_;
            store<LANES>(out + v * LANES, load<LANES>(whole + v * LANES) * global_weight + best * local_weight + poison);
        }
        memcpy(arrays_.scores + b * bank_.classes + first, out, count * sizeof(float));
        if (arrays_.patch_scores == nullptr) return;
        for (size_t n = 0; n < shape_.patches; ++n) {
            float* to = arrays_.patch_scores + (b * shape_.patches + n) * bank_.classes + first;
            for (size_t c = 0; c < count; ++c) to[c] = similarity[n * width + c] + bank_.local_poison[first + c];
        }
    }

    // One slice of the depth. Each call of `multiply` fetches `lines` of the slice that comes next: the bank may be
    // larger than the caches.
    struct Pass {
        size_t depth, lines;
        bool first, last;
    };

    // ROWS patches at a time from `n` on, then what is left in halves.
    template <int ROWS, int VECTORS>
    HPDVAL_INLINE void rows_of(size_t n, size_t end, const Unit* patches, const Unit* text, float* out,
                               const Pass& pass) {
        const Unit* next = text + pass.depth * VECTORS * LANES;
        for (; n + ROWS <= end; n += ROWS) {
            // Past the end of the bank the address is no one's, which a prefetch does not mind.
            for (size_t i = 0; i < pass.lines; ++i, next += CACHE_LINE) __builtin_prefetch(next, 0, 2);
            multiply<ROWS, VECTORS>(patches + n * depth_, text, out + n * VECTORS * LANES, scales_ + n, pass);
        }
        if constexpr (ROWS > 1) rows_of<ROWS / 2, VECTORS>(n, end, patches, text, out, pass);
    }

    // out[r, :] += patches[r, :depth] * text[:depth, :]; from zero at the first pass, times scales[r] at the last.
    template <int ROWS, int VECTORS>
    __attribute__((noinline)) void multiply(const Unit* __restrict patches, const Unit* __restrict text,
                                            float* __restrict out, const float* __restrict scales, const Pass& pass) {
        constexpr size_t width = VECTORS * LANES;
        Sums sums[ROWS][VECTORS];
        for (int r = 0; r < ROWS; ++r)
            for (int v = 0; v < VECTORS; ++v)
                sums[r][v] = pass.first ? Sums{} : (Sums)load<LANES>(out + r * width + v * LANES);
        for (size_t e = 0, depth = pass.depth; e < depth; ++e) {
            Sums classes[VECTORS];
            for (int v = 0; v < VECTORS; ++v) classes[v] = load<LANES>(text + e * width + v * LANES);
            for (int r = 0; r < ROWS; ++r) {
                const Sums patch = broadcast<LANES>(patches[r * depth_ + e]);
                for (int v = 0; v < VECTORS; ++v)
                    sums[r][v] = Product::template add<LANES>(sums[r][v], patch, classes[v]);
            }
        }
        for (int r = 0; r < ROWS; ++r)
            for (int v = 0; v < VECTORS; ++v) {
                const Vector done = Product::template finish<LANES>(sums[r][v], scales[r]);
                store<LANES>(out + r * width + v * LANES, pass.last ? done : (Vector)sums[r][v]);
            }
    }

    // out = row * text; four sums a class, since one alone would wait for itself.
    template <int VECTORS>
    void one_row(const float* row, const float* text, float* out) const {
        constexpr size_t width = VECTORS * LANES;
        constexpr int SUMS = 4;
        Vector sums[SUMS][VECTORS] = {};
        size_t e = 0;
        for (; e + SUMS <= shape_.width; e += SUMS)
            for (int i = 0; i < SUMS; ++i)
                for (int v = 0; v < VECTORS; ++v)
                    sums[i][v] += broadcast<LANES>(row[e + i]) * load<LANES>(text + (e + i) * width + v * LANES);
        for (; e < shape_.width; ++e)
            for (int v = 0; v < VECTORS; ++v)
                sums[0][v] += broadcast<LANES>(row[e]) * load<LANES>(text + e * width + v * LANES);
        for (int v = 0; v < VECTORS; ++v)
            store<LANES>(out + v * LANES, (sums[0][v] + sums[1][v]) + (sums[2][v] + sums[3][v]));
    }

    static size_t smaller_size(size_t a, size_t b) { return a < b ? a : b; }
    static size_t larger_size(size_t a, size_t b) { return a > b ? a : b; }

    const HeadShape& shape_;
    const HeadArrays& arrays_;
    const TextBank& bank_;
    const float alpha_;
    const size_t depth_;    // units of a row
    float* const tiles_;    // [group, N, panel width]: cosines of one image with a group of panels
    float* const scales_;   // [N]: of the patches' sums
    float* const rows_;     // [N, E]: the patches in float32, when they came in half precision
    int32_t* const pairs_;  // [N, depth]: the patches in int16, when the bank is
    float cls_inverse_ = 0, poison_ = 0;
};

template <class Isa>
constexpr HeadIsa head_isa(const char* name, bool (*available)()) {
    HeadIsa isa{name, Isa::LANES, Isa::VECTORS, available, &HeadKernel<Isa, Float32Product>::run, nullptr};
    if constexpr (FAST_PAIRS) isa.run_int16 = &HeadKernel<Isa, Int16Product>::run;
    return isa;
}

}  // namespace
}  // namespace hpdval
