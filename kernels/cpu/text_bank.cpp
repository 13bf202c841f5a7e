#include "text_bank.hpp"

#include <math.h>

#include <algorithm>
#include <type_traits>

namespace hpdval {
namespace {

double row_norm(const float* row, size_t width) {
    double sum = 0.0;
    for (size_t e = 0; e < width; ++e) sum += static_cast<double>(row[e]) * row[e];
    return sqrt(sum);
}

// A last vector alone joins the panel before it: a panel of one vector loads more for each product.
std::vector<Panel> make_panels(size_t classes, const HeadIsa& isa) {
    std::vector<Panel> panels;
    const size_t total = (classes + isa.lanes - 1) / isa.lanes;
    for (size_t at = 0; at < total;) {
        const size_t left = total - at;
        const size_t vectors = left <= isa.vectors + 1 ? left : isa.vectors;
        panels.push_back({at * isa.lanes, vectors});
        at += vectors;
    }
    return panels;
}

}  // namespace

PackedText::PackedText(const HeadIsa& isa, const float* text_global, const float* text_local, size_t classes,
                       size_t width, Precision precision)
    : isa_(isa), panels_(make_panels(classes, isa)) {
    const bool narrow = precision == Precision::int16;
    const size_t padded = (classes + isa.lanes - 1) / isa.lanes * isa.lanes, depth = narrow ? (width + 1) / 2 : width;
    const size_t size = padded * (width + depth + 2);
    buffer_ = std::make_unique<Buffer>(size);
    std::fill_n(buffer_->data(), size, 0.0f);
    float *global = buffer_->data(), *local = global + padded * width;
    poison_ = local + padded * depth;
    float* const local_poison = poison_ + padded;
    bank_ = {classes, width, isa.lanes * (isa.vectors + 1), panels_.size(), panels_.data(), global,
             narrow ? nullptr : local, narrow ? reinterpret_cast<int32_t*>(local) : nullptr, poison_, local_poison};
    if (narrow)
        pack(text_local, reinterpret_cast<int16_t*>(local));
    else
        pack(text_local, local);
    std::copy_n(poison_, padded, local_poison);
    pack(text_global, global);
}

template <class Number>
void PackedText::pack(const float* text, Number* packed) {
    constexpr bool narrow = std::is_same_v<Number, int16_t>;
    constexpr size_t side = narrow ? 2 : 1;  // numbers of a row that lie side by side
    const size_t width = bank_.width, depth = (width + side - 1) / side;
    std::vector<double> scales(bank_.panel_width);
    for (const Panel& panel : panels_) {
        const size_t columns = panel.vectors * isa_.lanes, count = std::min(columns, bank_.classes - panel.first);
        const float* rows = text + panel.first * width;
        Number* out = packed + panel.first * depth * side;
        for (size_t c = 0; c < count; ++c) {
            const double norm = row_norm(rows + c * width, width);
            scales[c] = 1.0 / (norm < EPS ? EPS : norm);
            poison_[panel.first + c] += static_cast<float>(norm * 0);
        }
        for (size_t e = 0; e < width; ++e)
            for (size_t c = 0; c < count; ++c) {
                const double number = rows[c * width + e] * scales[c];
                out[(e / side * columns + c) * side + e % side] =
                    static_cast<Number>(narrow ? lrint(number * INT16_ONE) : number);
            }
    }
}

}  // namespace hpdval
