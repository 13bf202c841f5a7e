// The compiled head on what a model gives before its own: hpdval_edge/kernels/head_cpu.py.
#pragma once

#include <stddef.h>

#include "bundle.hpp"
#include "text_bank.hpp"

namespace hpdval {

// Rows of float32 or float16, contiguous.
struct Rows {
    const void* data;
    Dtype dtype;
};

// A bundle's texts, packed once. Threads may share it.
class CompiledHead {
public:
    // threads: the most that one call may use, 0 for as many as are worth it. Throws Error as `instruction_set`.
    CompiledHead(const Bundle& bundle, int threads);

    // cls: [count, E]. patches: [count, N, E]. scores: [count, C]. patch_scores: [count, N, C], or null.
    void run(const Rows& cls, const Rows& patches, size_t count, float* scores, float* patch_scores) const;

private:
    size_t threads_for(size_t products) const;

    const PackedText text_;
    const size_t patches_, k_, most_threads_;
    const float alpha_;
};

}  // namespace hpdval
