#include "engine_cache.hpp"

#include <algorithm>
#include <filesystem>
#include <stdexcept>
#include <system_error>
#include <vector>

#include "documents.hpp"
#include "files.hpp"

namespace hpdval {
namespace {

namespace fs = std::filesystem;

// "tensorrt 10.3.0" and "tensorrt 10.3.0.30" are of version 10.3.0, "tensorrt 10.3.01" is not.
bool is_of(const std::string& software, const std::string& version) {
    const std::string wanted = "tensorrt " + version;
    return software.compare(0, wanted.size(), wanted) == 0 &&
           (software.size() == wanted.size() || software[wanted.size()] == '.');
}

// None where the record or the plan is damaged or is for something else.
std::optional<PlanFile> fitting(const fs::path& folder, const Bundle& bundle, const std::string& version,
                                const std::string& gpu) {
    try {
        const EngineRecord record = read_engine_record(read_file(folder / "engine.json"));
        if (record.model != bundle.model_sha256 || !is_of(record.software, version) || record.gpu != gpu ||
            record.labels < bundle.labels.size())
            return std::nullopt;
        PlanFile plan{folder / "engine.plan", read_file(folder / "engine.plan"), record.host_code};
        if (sha256(plan.data) != record.sha256) return std::nullopt;
        return plan;
    } catch (const std::invalid_argument&) {
        return std::nullopt;
    } catch (const std::system_error&) {
        return std::nullopt;
    }
}

}  // namespace

std::string engines_folder(const std::string& bundle) {
    fs::path path = fs::absolute(bundle).lexically_normal();
    if (!path.has_filename()) path = path.parent_path();
    return path.replace_extension(".engines");
}

std::optional<PlanFile> find_plan(const Bundle& bundle, const std::string& version, const std::string& gpu) {
    std::error_code none;
    std::vector<std::pair<fs::file_time_type, fs::path>> found;
    for (const fs::directory_entry& entry : fs::directory_iterator(engines_folder(bundle.path), none)) {
        const auto written = fs::last_write_time(entry.path() / "engine.json", none);
        if (!none) found.emplace_back(written, entry.path());
    }
    std::sort(found.rbegin(), found.rend());
    for (const auto& [written, folder] : found)
        if (auto plan = fitting(folder, bundle, version, gpu)) return plan;
    return std::nullopt;
}

}  // namespace hpdval
