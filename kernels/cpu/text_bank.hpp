// Text rows of a label list, scaled and packed once for one instruction set.
#pragma once

#include <memory>
#include <vector>

#include "buffer.hpp"
#include "head.hpp"

namespace hpdval {

class PackedText {
public:
    // text_global, text_local: [C, E], contiguous; copied. int16 needs isa.run_int16.
    PackedText(const HeadIsa& isa, const float* text_global, const float* text_local, size_t classes, size_t width,
               Precision precision = Precision::float32);

    const HeadIsa& isa() const { return isa_; }
    const TextBank& bank() const { return bank_; }

private:
    // Number: float, or int16_t for pairs.
    template <class Number>
    void pack(const float* text, Number* packed);

    const HeadIsa& isa_;
    std::vector<Panel> panels_;
    std::unique_ptr<Buffer> buffer_;
    float* poison_;
    TextBank bank_;
};

}  // namespace hpdval
