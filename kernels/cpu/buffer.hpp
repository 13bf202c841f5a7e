// Floats on a 64-byte boundary, the widest vector and a cache line.
#pragma once

#include <stddef.h>

#include <new>

namespace hpdval {

class Buffer {
public:
    explicit Buffer(size_t size) : data_(static_cast<float*>(::operator new(size * sizeof(float), ALIGNMENT))) {}
    ~Buffer() { ::operator delete(data_, ALIGNMENT); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    float* data() { return data_; }
    const float* data() const { return data_; }

private:
    static constexpr std::align_val_t ALIGNMENT{64};
    float* data_;
};

}  // namespace hpdval
