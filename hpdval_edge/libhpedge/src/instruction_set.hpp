// Which instruction set the kernels run with: kernels/compiled.py.
#pragma once

#include <string>
#include <vector>

namespace hpdval {

// The one that the environment variable HPEDGE_ISA names, or the best of `files` that it includes, as a position there;
// unset, the first. files: those that a kernel has a file for and this machine runs, fastest first, "generic" among
// them. Throws Error, HPEDGE_USAGE, where it names an unknown one or one that this machine lacks.
size_t instruction_set(const std::vector<std::string>& files);

// The same of a kernel's tables, which have a `name`.
template <class Isa>
const Isa& chosen_isa(const std::vector<const Isa*>& here) {
    std::vector<std::string> names;
    for (const Isa* isa : here) names.push_back(isa->name);
    return *here[instruction_set(names)];
}

}  // namespace hpdval
