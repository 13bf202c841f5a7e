// Engines that `hpedge build` left beside a bundle (hpdval_edge/trt/engine_cache.py).
#pragma once

#include <optional>
#include <string>

#include "bundle.hpp"

namespace hpdval {

// A plan's bytes. host_code: a plugin's library is inside, which is executable code.
struct PlanFile {
    std::string path, data;
    bool host_code = false;
};

// Where a bundle's engines lie: birds.engines beside birds.hpedge.
std::string engines_folder(const std::string& bundle);

// The newest plan below the bundle's engines_folder whose record names the bundle's model, this TensorRT ("10.3.0",
// whatever its build) and this GPU, for enough labels, and whose sha256 is the record's. Others are left out.
std::optional<PlanFile> find_plan(const Bundle& bundle, const std::string& version, const std::string& gpu);

}  // namespace hpdval
