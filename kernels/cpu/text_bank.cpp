#include "text_bank.hpp"

#include <math.h>

#include <algorithm>

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
                       size_t width)
    : isa_(isa), panels_(make_panels(classes, isa)) {
    const size_t padded = (classes + isa.lanes - 1) / isa.lanes * isa.lanes;
    buffer_ = std::make_unique<Buffer>(padded * (2 * width + 1));
    std::fill_n(buffer_->data(), padded * (2 * width + 1), 0.0f);
    float *global = buffer_->data(), *local = global + padded * width;
    poison_ = local + padded * width;
    bank_ = {classes, width, isa.lanes * (isa.vectors + 1), panels_.size(), panels_.data(), global, local, poison_};
    pack(text_global, global);
    pack(text_local, local);
}

void PackedText::pack(const float* text, float* packed) {
    const size_t width = bank_.width;
    std::vector<double> scales(bank_.panel_width);
    for (const Panel& panel : panels_) {
        const size_t columns = panel.vectors * isa_.lanes, count = std::min(columns, bank_.classes - panel.first);
        const float* rows = text + panel.first * width;
        float* out = packed + panel.first * width;
        for (size_t c = 0; c < count; ++c) {
            const double norm = row_norm(rows + c * width, width);
            scales[c] = 1.0 / (norm < EPS ? EPS : norm);
            poison_[panel.first + c] += static_cast<float>(norm * 0);
        }
        for (size_t e = 0; e < width; ++e)
            for (size_t c = 0; c < count; ++c)
                out[e * columns + c] = static_cast<float>(rows[c * width + e] * scales[c]);
    }
}

}  // namespace hpdval
