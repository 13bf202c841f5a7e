#include "preprocess.hpp"

#include <string.h>

#include <algorithm>

namespace hpdval {
namespace {

constexpr size_t LOAD = 16;  // bytes of one group of four taps

// Room for `samples` rounded up to whole vectors, and for what is stored behind them.
size_t stride_of(size_t samples) { return (samples + SLACK - 1) / SLACK * SLACK + SLACK; }

// Grey levels of one row, interleaved, to three rows of words.
template <typename Word>
void look_up(const uint8_t* levels, const Output& output, size_t width, size_t plane, size_t at) {
    for (size_t c = 0; c < 3; ++c) {
        const Word* table = static_cast<const Word*>(output.table) + 256 * c;
        const uint8_t* level = levels + (output.swap ? 2 - c : c);
        Word* out = static_cast<Word*>(output.data) + c * plane + at;
        for (size_t x = 0; x < width; ++x) out[x] = table[level[3 * x]];
    }
}

void keep_levels(const uint8_t* levels, bool swap, size_t width, uint8_t* out) {
    if (!swap) memcpy(out, levels, 3 * width);
    for (size_t x = 0; swap && x < width; ++x)
        for (size_t c = 0; c < 3; ++c) out[3 * x + c] = levels[3 * x + 2 - c];
}

}  // namespace

std::vector<const PreprocessIsa*> preprocess_isas() {
    std::vector<const PreprocessIsa*> found;
#if defined(__x86_64__) || defined(_M_X64)
    if (preprocess_avx2.runs_here()) found.push_back(&preprocess_avx2);
#endif
    found.push_back(&preprocess_generic);
    return found;
}

Resizer::Resizer(const Plan& plan, const PreprocessIsa& isa, const Output& output)
    : plan_(plan), isa_(isa), output_(output),
      // While a block of rows is written, the oldest row that an unfinished output needs is still there.
      ring_rows_(plan.most_rows + ROWS), level_stride_(stride_of(3 * plan.geometry.out_width)),
      levels_(ROWS * level_stride_), spare_(level_stride_), window_(plan.most_rows) {}

// The ring holds rows as they come where the vertical pass is the first, else rows of the final width.
void Resizer::allocate(size_t bytes) {
    const Geometry& g = plan_.geometry;
    bytes_ = bytes;
    within_ = outputs_within();
    ring_stride_ = g.vertical_first ? stride_of(bytes * g.width) : level_stride_;
    ring_.resize(ring_rows_ * ring_stride_);
    if (g.vertical_first) wide_.resize(ROWS * ring_stride_);
}

void Resizer::push(const uint8_t* rows, ptrdiff_t stride, size_t count, size_t bytes) {
    const size_t first = next_row_;
    take(count, bytes, [&](size_t y, size_t) { return rows + static_cast<ptrdiff_t>(y - first) * stride; });
}

void Resizer::push_nv12(const uint8_t* luma, ptrdiff_t luma_stride, const uint8_t* chroma, ptrdiff_t chroma_stride) {
    const size_t width = plan_.geometry.width;
    std::vector<uint8_t> converted(ROWS * width * 4);
    take(plan_.geometry.height, 4, [&](size_t y, size_t r) {
        uint8_t* row = &converted[r * width * 4];
        isa_.nv12_row(luma + static_cast<ptrdiff_t>(y) * luma_stride,
                      chroma + static_cast<ptrdiff_t>(y / 2) * chroma_stride, width, row);
        return static_cast<const uint8_t*>(row);
    });
}

// Blocks of rows to the ring, each followed by the outputs that it completes.
template <typename Row>
void Resizer::take(size_t count, size_t bytes, const Row& row_at) {
    if (bytes_ == 0) allocate(bytes);
    const size_t end = std::min(next_row_ + count, plan_.end_row);
    for (size_t y = std::max(next_row_, plan_.first_row); y < end; y += ROWS) {
        const size_t rows_here = std::min(ROWS, end - y);
        Rows rows;
        for (size_t r = 0; r < ROWS; ++r) rows[r] = r < rows_here ? row_at(y + r, r) : rows[0];
        to_ring(rows, rows_here, y);
        emit_ready(y + rows_here);
    }
    next_row_ += count;
}

void Resizer::to_ring(const Rows& rows, size_t count, size_t y) {
    if (plan_.geometry.vertical_first) {
        for (size_t r = 0; r < count; ++r) memcpy(ring_row(y + r), rows[r], bytes_ * plan_.geometry.width);
        return;
    }
    uint8_t* out[ROWS];
    for (size_t r = 0; r < ROWS; ++r) out[r] = r < count ? ring_row(y + r) : spare_.data();
    horizontal(rows, count, out);
}

void Resizer::emit_ready(size_t rows_done) {
    const Axis& y = plan_.y;
    for (size_t i = next_output_; i < y.start.size() && y.start[i] + y.count[i] <= rows_done; i = ++next_output_) {
        if (plan_.geometry.vertical_first) {
            vertical_then_horizontal(i);
        } else if (y.identity) {
            emit(i, ring_row(y.start[i]));
        } else {
            vertical(i, levels_.data());
            emit(i, levels_.data());
        }
    }
}

void Resizer::vertical(size_t output, uint8_t* out) {
    const Axis& y = plan_.y;
    for (size_t t = 0; t < y.count[output]; ++t) window_[t] = ring_row(y.start[output] + t);
    isa_.vertical(window_.data(), y.view(), output, ring_stride_ - SLACK, out);
}

// Output rows wait until there are ROWS of them, or no more to come.
void Resizer::vertical_then_horizontal(size_t output) {
    vertical(output, &wide_[waiting_++ * ring_stride_]);
    if (waiting_ < ROWS && output + 1 < plan_.geometry.out_height) return;
    Rows rows;
    uint8_t* out[ROWS];
    for (size_t r = 0; r < ROWS; ++r) {
        rows[r] = &wide_[(r < waiting_ ? r : 0) * ring_stride_];
        out[r] = &levels_[r * level_stride_];
    }
    horizontal(rows, waiting_, out);
    for (size_t r = 0; r < waiting_; ++r) emit(output + 1 - waiting_ + r, out[r]);
    waiting_ = 0;
}

void Resizer::horizontal(const Rows& rows, size_t count, uint8_t* const out[ROWS]) {
    if (plan_.x.identity) {
        for (size_t r = 0; r < count; ++r) crop_row(rows[r], out[r]);
        return;
    }
    RowBlock block{{}, {}, count, 0, 0, within_, bytes_};
    for (size_t r = 0; r < ROWS; ++r) {
        block.rows[r] = rows[r];
        block.out[r] = out[r];
    }
    isa_.horizontal(block, plan_.x.view());
    if (block.end == plan_.geometry.out_width) return;
    move_to_tails(block);
    isa_.horizontal(block, plan_.x.view());
}

void Resizer::crop_row(const uint8_t* row, uint8_t* out) const {
    row += plan_.geometry.left * bytes_;
    if (bytes_ == 3) memcpy(out, row, 3 * plan_.geometry.out_width);
    for (size_t x = 0; bytes_ != 3 && x < plan_.geometry.out_width; ++x) memcpy(out + 3 * x, row + bytes_ * x, 3);
}

// Outputs, from the first on, whose vector loads stay within the row.
size_t Resizer::outputs_within() const {
    const Axis& x = plan_.x;
    const size_t row = plan_.geometry.width * bytes_;
    for (size_t i = 0; i < x.start.size(); ++i) {
        const size_t last_group = x.start[i] + (x.count[i] - 1) / 4 * 4;
        if (last_group * bytes_ + LOAD > row) return i;
    }
    return x.start.size();
}

// The remaining outputs read copies of the rows' ends that have bytes to spare behind them.
void Resizer::move_to_tails(RowBlock& block) {
    block.begin = block.end;
    block.end = plan_.geometry.out_width;
    block.origin = plan_.x.start[block.begin];
    const size_t skipped = block.origin * block.bytes, kept = plan_.geometry.width * block.bytes - skipped;
    tails_.resize(ROWS * (kept + SLACK));
    for (size_t r = 0; r < ROWS; ++r) {
        uint8_t* tail = &tails_[r * (kept + SLACK)];
        memcpy(tail, block.rows[r] + skipped, kept);
        block.rows[r] = tail;
    }
}

void Resizer::emit(size_t row, const uint8_t* levels) {
    const size_t width = plan_.geometry.out_width, plane = width * plan_.geometry.out_height;
    if (output_.word == 4) return look_up<uint32_t>(levels, output_, width, plane, row * width);
    if (output_.word == 2) return look_up<uint16_t>(levels, output_, width, plane, row * width);
    keep_levels(levels, output_.swap, width, static_cast<uint8_t*>(output_.data) + 3 * row * width);
}

}  // namespace hpdval
