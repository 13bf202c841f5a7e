// Pictures to a model's image input, by the kernel that training and Python use (kernels/cpu/preprocess.hpp).
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <memory>
#include <mutex>
#include <vector>

#include "bundle.hpp"
#include "hpedge.h"
#include "preprocess.hpp"

namespace hpdval {

class Preparer {
public:
    // Throws Error as `instruction_set`.
    explicit Preparer(const Bundle& bundle);

    // Squashes picture `index` of a call to the model's size, normalises it and writes Bundle::image_bytes() to `out`.
    // Throws Error, HPEDGE_BAD_DATA, where it is no picture that hpedge.h describes.
    void prepare(const hpedge_image& image, size_t index, void* out);

private:
    std::shared_ptr<const Plan> plan_for(size_t width, size_t height);

    const size_t size_, word_;
    const PreprocessIsa& isa_;
    std::vector<uint8_t> table_;  // [3, 256] words, empty where the model takes levels
    std::mutex mutex_;
    std::shared_ptr<const Plan> plan_;  // of the last picture: frames of a video have one size
};

}  // namespace hpdval
