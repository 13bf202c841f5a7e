#include "head.hpp"

#include <algorithm>
#include <atomic>

#include "buffer.hpp"
#include "pool.hpp"

namespace hpdval {
namespace {

// More tasks than threads, since threads may start late or be slow; fewer repeat the norms of an image less often.
constexpr size_t TASKS_PER_THREAD = 8;
// Floats of similarities held at a time: half of a small second-level cache.
constexpr size_t TILES = 64 * 1024;

}  // namespace

size_t head_group(const HeadShape& shape, const TextBank& bank) {
    return std::clamp<size_t>(TILES / (shape.patches * bank.panel_width), 1, bank.panel_count);
}

size_t head_rows(const HeadShape& shape) {
    return shape.dtype == Dtype::float32 ? 0 : shape.patches * shape.width;
}

size_t head_scratch(const HeadShape& shape, const TextBank& bank) {
    const size_t tiles = head_group(shape, bank) * shape.patches * bank.panel_width;
    const size_t pairs = bank.local_pairs ? shape.patches * ((shape.width + 1) / 2) : 0;
    // In whole cache lines, so that the scratch of two threads can lie side by side.
    return (tiles + shape.patches + head_rows(shape) + pairs + 15) / 16 * 16;
}

void head(const HeadIsa& isa, const HeadShape& shape, const HeadArrays& arrays, const TextBank& bank, float alpha,
          size_t threads) {
    if (shape.images == 0 || bank.classes == 0) return;
    threads = std::max<size_t>(1, threads);
    const size_t wanted = threads == 1 ? 1 : (threads * TASKS_PER_THREAD + shape.images - 1) / shape.images;
    const size_t parts = std::min(bank.panel_count, wanted), tasks = shape.images * parts;
    threads = std::min(threads, tasks);
    const size_t size = head_scratch(shape, bank);
    const auto run = bank.local_pairs ? isa.run_int16 : isa.run;
    Buffer scratch(threads * size);
    std::atomic<size_t> next{0};
    run_parallel(threads, [&](size_t thread) {
        for (size_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
            const size_t image = task / parts, part = task % parts;
            run(shape, arrays, bank, alpha,
                {image, image + 1, bank.panel_count * part / parts, bank.panel_count * (part + 1) / parts},
                scratch.data() + thread * size);
        }
    });
}

}  // namespace hpdval
