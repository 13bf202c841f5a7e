#include "compiled_head.hpp"

#include <sched.h>

#include <algorithm>
#include <thread>
#include <vector>

#include "instruction_set.hpp"
#include "widen.hpp"

namespace hpdval {
namespace {

// Each further thread must bring this many multiply-adds, or waking it costs more than it saves.
constexpr size_t PRODUCTS_PER_THREAD = 1 << 22;

size_t usable_cpus() {
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) return static_cast<size_t>(CPU_COUNT(&allowed));
    return std::max(1u, std::thread::hardware_concurrency());
}

const HeadIsa& head_isa_here() {
    std::vector<const HeadIsa*> here;
    for (const HeadIsa* isa : HEAD_ISAS)
        if (isa->available()) here.push_back(isa);
    return chosen_isa(here);
}

}  // namespace

CompiledHead::CompiledHead(const Bundle& bundle, int threads)
    : text_(head_isa_here(), bundle.text_global.data(), bundle.text_local.data(), bundle.labels.size(),
            bundle.embed_dim),
      patches_(bundle.patches()), k_(std::min(bundle.topk, bundle.patches())),
      most_threads_(threads ? std::min(static_cast<size_t>(threads), usable_cpus()) : usable_cpus()),
      alpha_(bundle.alpha) {}

void CompiledHead::run(const Rows& cls, const Rows& patches, size_t count, float* scores, float* patch_scores) const {
    const TextBank& bank = text_.bank();
    std::vector<float> wide(cls.dtype == Dtype::float32 ? 0 : count * bank.width);
    const auto* narrow = static_cast<const uint16_t*>(cls.data);
    for (size_t i = 0; i < wide.size(); ++i) wide[i] = widen_float16(narrow[i]);
    const float* rows = wide.empty() ? static_cast<const float*>(cls.data) : wide.data();
    head(text_.isa(), {count, patches_, bank.width, k_, patches.dtype}, {rows, patches.data, scores, patch_scores},
         bank, alpha_, threads_for(count * patches_ * bank.classes * bank.width));
}

// Scores do not depend on it.
size_t CompiledHead::threads_for(size_t products) const {
    return std::min(most_threads_, 1 + products / PRODUCTS_PER_THREAD);
}

}  // namespace hpdval
