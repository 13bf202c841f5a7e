#include "pictures.hpp"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <string>

#include "error.hpp"
#include "instruction_set.hpp"

namespace hpdval {
namespace {

// Rounded to nearest, ties to even, as NumPy does it.
uint16_t to_half(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    // 65536 and more.
    if (magnitude >= 0x47800000) return static_cast<uint16_t>(sign | 0x7c00);
    // Below 2^-14 a half counts steps of 2^-24.
    if (magnitude < 0x38800000)
        return static_cast<uint16_t>(sign | static_cast<uint32_t>(nearbyintf(fabsf(value) * 0x1p24f)));
    const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
    return static_cast<uint16_t>(sign | (rounded - (112u << 23)) >> 13);
}

// What (x / 255 - mean) / std makes of every level, in float32, then rounded to the input's type.
std::vector<uint8_t> make_table(const Bundle& bundle, size_t word) {
    std::vector<uint8_t> table(word == 1 ? 0 : 3 * 256 * word);
    for (size_t i = 0; word != 1 && i < 3 * 256; ++i) {
        const float unit = static_cast<float>(i % 256) / 255.0f;
        const float value = (unit - bundle.mean[i / 256]) / bundle.std[i / 256];
        const uint16_t half = to_half(value);
        if (word == 4) memcpy(&table[i * word], &value, word);
        if (word == 2) memcpy(&table[i * word], &half, word);
    }
    return table;
}

size_t word_of(Input input) { return input == Input::float32 ? 4 : input == Input::float16 ? 2 : 1; }

[[noreturn]] void refuse(size_t index, const std::string& reason) {
    throw Error(HPEDGE_BAD_DATA, "picture " + std::to_string(index) + ": " + reason + ".");
}

void check_stride(size_t index, const char* name, ptrdiff_t stride, size_t row) {
    if (static_cast<size_t>(llabs(stride)) < row)
        refuse(index, std::string(name) + " is " + std::to_string(stride) + " bytes and a row has " +
                          std::to_string(row) + "; 0 says that rows touch");
}

// `image` with its strides filled in.
hpedge_image checked(hpedge_image image, size_t index) {
    const int32_t most = static_cast<int32_t>(MAX_SIDE);
    if (image.width < 1 || image.height < 1 || image.width > most || image.height > most)
        refuse(index, "it is " + std::to_string(image.width) + " x " + std::to_string(image.height) +
                          " pixels; sides are 1 to " + std::to_string(most));
    if (image.format < HPEDGE_RGB || image.format > HPEDGE_NV12)
        refuse(index, "format " + std::to_string(image.format) + " is none of hpedge_format, 0 to 4");
    if (!image.data) refuse(index, "its data is NULL");
    const size_t width = static_cast<size_t>(image.width);
    const bool nv12 = image.format == HPEDGE_NV12;
    const size_t row = width * (nv12 ? 1 : image.format >= HPEDGE_RGBX ? 4 : 3);
    if (!image.stride) image.stride = static_cast<ptrdiff_t>(row);
    check_stride(index, "stride", image.stride, row);
    if (!nv12) return image;
    if (image.width % 2 || image.height % 2)
        refuse(index, "it is " + std::to_string(image.width) + " x " + std::to_string(image.height) +
                          " pixels; NV12 has even sides");
    if (!image.chroma) refuse(index, "it is NV12 and its chroma is NULL");
    if (!image.chroma_stride) image.chroma_stride = static_cast<ptrdiff_t>(row);
    check_stride(index, "chroma_stride", image.chroma_stride, row);
    return image;
}

// Pillow 13's order of passes, as in preprocess_spec.py.
Geometry squash(size_t width, size_t height, size_t size) {
    const ptrdiff_t side = static_cast<ptrdiff_t>(size), narrow = static_cast<ptrdiff_t>(width) - side;
    const ptrdiff_t shrink = static_cast<ptrdiff_t>(height) - side;
    const bool vertical_first = shrink > (narrow > 0 ? 2 * narrow : 0) && narrow != 0;
    return {width, height, size, size, 0, 0, size, size, vertical_first};
}

}  // namespace

Preparer::Preparer(const Bundle& bundle)
    : size_(bundle.image_size), word_(word_of(bundle.input)), isa_(chosen_isa(preprocess_isas())),
      table_(make_table(bundle, word_)) {}

std::shared_ptr<const Plan> Preparer::plan_for(size_t width, size_t height) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!plan_ || plan_->geometry.width != width || plan_->geometry.height != height)
        plan_ = std::make_shared<const Plan>(squash(width, height, size_));
    return plan_;
}

void Preparer::prepare(const hpedge_image& image, size_t index, void* out) {
    const hpedge_image picture = checked(image, index);
    const auto plan = plan_for(static_cast<size_t>(picture.width), static_cast<size_t>(picture.height));
    const bool swap = picture.format == HPEDGE_BGR || picture.format == HPEDGE_BGRX;
    Resizer resizer(*plan, isa_, {out, table_.empty() ? nullptr : table_.data(), word_, swap});
    if (picture.format == HPEDGE_NV12)
        resizer.push_nv12(picture.data, picture.stride, picture.chroma, picture.chroma_stride);
    else
        resizer.push(picture.data, picture.stride, plan->geometry.height, picture.format >= HPEDGE_RGBX ? 4 : 3);
}

}  // namespace hpdval
