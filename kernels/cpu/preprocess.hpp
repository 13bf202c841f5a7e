// Pictures to network input on raw pointers: Pillow's antialiased bicubic resize, a crop, and a table lookup that
// normalises. kernels/preprocess.py is the specification; every result equals Pillow's to the last bit.
//
// Rounding: weights are doubles (a = -0.5, support widened by the ratio), rounded to fixed point with 22 bits; each of
// the two passes sums 32-bit integers, adds one half, shifts and clips to 0..255. No full-size intermediate exists: the
// vertical pass reads a ring of rows, as many as one output row needs. Which pass comes first is the caller's choice.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <vector>

namespace hpdval {

constexpr size_t ROWS = 4;          // rows that the horizontal pass takes side by side
constexpr size_t SLACK = 32;        // bytes behind every row of our own that vector loads and stores may touch
constexpr size_t MAX_SIDE = 65535;  // of a picture and of a crop, so that a row and its weights fit memory

// One direction of a resize: which input pixels make an output pixel, and how much of each.
struct Taps {
    const size_t* start;     // [out]: first input pixel, never decreasing
    const size_t* count;     // [out]: input pixels, at least 1
    const int32_t* weights;  // [out, taps]: fixed point, zero from `count` on
    const int32_t* pairs;    // [out, taps / 2, 2]: two weights' high parts, then their low ones, 16 bits each
    size_t taps;             // the largest count, rounded up to a multiple of 4
};

// The memory behind Taps.
struct Axis {
    std::vector<size_t> start, count;
    std::vector<int32_t> weights, pairs;
    size_t taps;
    bool identity;  // every output pixel is its input pixel
    Taps view() const { return {start.data(), count.data(), weights.data(), pairs.data(), taps}; }
};

struct Geometry {
    size_t width, height;                  // of the picture
    size_t resized_width, resized_height;  // of the whole picture after resizing
    size_t left, top;                      // of the crop in the resized picture
    size_t out_width, out_height;          // of the crop
    bool vertical_first;                   // only where both sizes change
};

// All that depends on sizes alone; shared by threads and kept by callers that see one size often.
struct Plan {
    explicit Plan(const Geometry& geometry);
    Geometry geometry;
    Axis x, y;
    size_t first_row, end_row;  // the rows of the picture that count
    size_t most_rows;           // of the picture in one output row
};

// Up to ROWS rows of `bytes`-byte pixels (3: RGB, 4: RGB and one that is ignored); outputs [begin, end) of `x`.
struct RowBlock {
    const uint8_t* rows[ROWS];  // pixel `origin` of each row
    uint8_t* out[ROWS];         // 3 bytes a pixel; the byte behind output `end` may be overwritten
    size_t count;               // rows that matter; the pointers behind them are valid as well
    size_t origin, begin, end, bytes;
};

// An instruction set's share of the work. It holds no templates of the standard library, which a linker could share
// with files for older machines.
struct PreprocessIsa {
    const char* name;
    bool (*runs_here)();
    // Taps are read in groups of four, 16 bytes from the first on.
    void (*horizontal)(const RowBlock& block, const Taps& x);
    // out[i] = clipped sum over t of weights[t] * rows[t][i], for i < samples rounded up to SLACK.
    void (*vertical)(const uint8_t* const* rows, const Taps& y, size_t row, size_t samples, uint8_t* out);
    // One row of an NV12 picture to RGBX: BT.601 limited range, each chroma sample used for two pixels.
    void (*nv12_row)(const uint8_t* luma, const uint8_t* chroma, size_t width, uint8_t* out);
};

extern const PreprocessIsa preprocess_generic;
extern const PreprocessIsa preprocess_avx2;

// Those that are compiled in and run on this machine, the fastest first.
std::vector<const PreprocessIsa*> preprocess_isas();

struct Output {
    void* data;         // [3, out_height, out_width] words; without a table uint8 [out_height, out_width, 3]
    const void* table;  // [3, 256] words: what each grey level of R, G, B becomes; null to keep the levels
    size_t word;        // bytes of a word: 4, 2, or 1 without a table
    bool swap;          // the input is BGR; the output is always RGB
};

// Resizes one picture whose rows are pushed from top to bottom, all at once or in bands.
class Resizer {
public:
    Resizer(const Plan& plan, const PreprocessIsa& isa, const Output& output);

    // `count` more rows of `bytes`-byte pixels (3 or 4, the same for all of a picture), contiguous within a row.
    void push(const uint8_t* rows, ptrdiff_t stride, size_t count, size_t bytes);

    // A whole NV12 picture, even in width and height.
    void push_nv12(const uint8_t* luma, ptrdiff_t luma_stride, const uint8_t* chroma, ptrdiff_t chroma_stride);

    size_t rows_left() const { return plan_.geometry.height - next_row_; }
    size_t pixel_bytes() const { return bytes_; }  // 0 before the first push

private:
    using Rows = const uint8_t* [ROWS];
    template <typename Row>
    void take(size_t count, size_t bytes, const Row& row_at);
    void allocate(size_t bytes);
    void to_ring(const Rows& rows, size_t count, size_t y);
    void emit_ready(size_t rows_done);
    void vertical(size_t output, uint8_t* out);
    void vertical_then_horizontal(size_t output);
    void horizontal(const Rows& rows, size_t count, uint8_t* const out[ROWS]);
    void move_to_tails(RowBlock& block);
    size_t outputs_within() const;
    void crop_row(const uint8_t* row, uint8_t* out) const;
    void emit(size_t row, const uint8_t* levels);
    uint8_t* ring_row(size_t y) { return &ring_[y % ring_rows_ * ring_stride_]; }

    const Plan& plan_;
    const PreprocessIsa& isa_;
    const Output output_;
    const size_t ring_rows_, level_stride_;
    size_t next_row_ = 0, next_output_ = 0, waiting_ = 0, bytes_ = 0, within_ = 0, ring_stride_ = 0;
    std::vector<uint8_t> ring_, wide_, levels_, spare_, tails_;
    std::vector<const uint8_t*> window_;
};

}  // namespace hpdval
