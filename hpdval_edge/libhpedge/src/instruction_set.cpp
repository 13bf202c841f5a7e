#include "instruction_set.hpp"

#include <stdlib.h>

#include <algorithm>

#include "error.hpp"
#include "head.hpp"

namespace hpdval {
namespace {

// What HPEDGE_ISA may name, and the best that each includes: its machines run the code of that one, too.
constexpr struct {
    const char *name, *best;
} INCLUDES[] = {{"avx512", "avx2"}, {"avx2", "generic"}, {"neon", "generic"}, {"generic", ""}};

std::string best_in(const std::string& name) {
    for (const auto& isa : INCLUDES)
        if (name == isa.name) return isa.best;
    throw Error(HPEDGE_USAGE, "HPEDGE_ISA must be one of avx512, avx2, neon, generic, got '" + name + "'; unset it.");
}

// The head has a file for each of them.
void check_here(const std::string& name) {
    std::string here;
    for (const HeadIsa* isa : HEAD_ISAS) {
        if (!isa->available()) continue;
        if (name == isa->name) return;
        here += (here.empty() ? "" : ", ") + std::string(isa->name);
    }
    throw Error(HPEDGE_USAGE, "HPEDGE_ISA must name an instruction set of this machine (" + here + "), got '" + name +
                                  "'; unset it.");
}

}  // namespace

size_t instruction_set(const std::vector<std::string>& files) {
    const char* given = getenv("HPEDGE_ISA");
    if (!given || !*given) return 0;
    std::string name = given;
    best_in(name);
    check_here(name);
    for (;; name = best_in(name)) {
        const auto found = std::find(files.begin(), files.end(), name);
        if (found != files.end()) return static_cast<size_t>(found - files.begin());
    }
}

}  // namespace hpdval
