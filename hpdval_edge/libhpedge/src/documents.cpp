#include "documents.hpp"

#include <nlohmann/json.hpp>
#include <set>
#include <stdexcept>
#include <type_traits>

namespace hpdval {
namespace {

using nlohmann::json;

// Those of Manifest in bundle.py. Bundles older than `input` take float32.
const std::set<std::string> KEYS = {"schema",    "name",        "labels",     "image_size", "mean",
                                    "std",       "alpha",       "topk",       "grid",       "embed_dim",
                                    "precision", "logit_scale", "provenance", "files",      "input"};

json parse(const std::string& text) {
    try {
        return json::parse(text);
    } catch (const json::exception& error) {
        throw std::invalid_argument(std::string("is not JSON (") + error.what() + ")");
    }
}

// What `take` makes of a document; a key that is missing or of another type is told.
template <class Take>
auto taken(const Take& take) {
    try {
        return take();
    } catch (const json::exception& error) {
        throw std::invalid_argument("is not what schema " + std::to_string(SCHEMA) + " holds (" + error.what() + ")");
    }
}

void check_schema(const json& values) {
    const json schema = values.is_object() && values.contains("schema") ? values["schema"] : json();
    if (schema != SCHEMA)
        throw std::invalid_argument("has schema " + schema.dump() + ", this version reads " + std::to_string(SCHEMA) +
                                    "; export it again or update hpedge");
    std::string odd;
    for (const std::string& key : KEYS)
        if (key != "input" && !values.contains(key)) odd += (odd.empty() ? "" : ", ") + key;
    for (auto item = values.begin(); item != values.end(); ++item)
        if (!KEYS.count(item.key())) odd += (odd.empty() ? "" : ", ") + item.key();
    if (!odd.empty())
        throw std::invalid_argument("does not fit schema " + std::to_string(SCHEMA) + " (keys: " + odd + ")");
}

double number(const json& values, const char* key, double missing) {
    return values.contains(key) ? values[key].get<double>() : missing;
}

std::string word(const json& values, const char* key, const char* missing) {
    return values.contains(key) ? values[key].get<std::string>() : missing;
}

template <class T>
std::vector<T> list(const json& values) {
    std::vector<T> items;
    for (const json& value : values) items.push_back(value.get<T>());
    return items;
}

// The library would cut 1.5 to 1, and make 1 of true.
template <class T>
T whole(const json& value) {
    if (!value.is_number_integer())
        throw std::invalid_argument("has " + value.dump() + " where it should have a whole number");
    return value.get<T>();
}

template <class T, size_t N>
std::array<T, N> exactly(const json& values) {
    std::array<T, N> items;
    if (values.size() != N)
        throw std::invalid_argument("has " + std::to_string(values.size()) + " numbers where it should have " +
                                    std::to_string(N));
    for (size_t i = 0; i < N; ++i)
        if constexpr (std::is_integral_v<T>)
            items[i] = whole<T>(values.at(i));
        else
            items[i] = values.at(i).get<T>();
    return items;
}

}  // namespace

Manifest read_manifest(const std::string& text) {
    const json values = parse(text);
    check_schema(values);
    return taken([&] {
        Manifest manifest{list<std::string>(values["labels"]),
                          values["precision"].get<std::string>(),
                          word(values, "input", "float32"),
                          whole<size_t>(values["image_size"]),
                          whole<size_t>(values["embed_dim"]),
                          whole<int64_t>(values["topk"]),
                          values["alpha"].get<double>(),
                          exactly<size_t, 2>(values["grid"]),
                          exactly<float, 3>(values["mean"]),
                          exactly<float, 3>(values["std"]),
                          values["logit_scale"].get<double>(),
                          {}};
        for (auto file = values["files"].begin(); file != values["files"].end(); ++file)
            manifest.files[file.key()] = file.value().get<std::string>();
        return manifest;
    });
}

Thresholds read_thresholds(const std::string& text, const std::string& precision) {
    const json values = parse(text);
    return taken([&] {
        const json& entry = values.at(precision);
        return Thresholds{list<std::string>(entry.at("labels")), list<float>(entry.at("values")),
                          number(entry, "temperature", 1.0), number(entry, "bias", 0.0),
                          word(entry, "fitted_at", "fp32")};
    });
}

std::map<std::string, Tensor> read_tensors(const std::string& header) {
    const json values = parse(header);
    return taken([&] {
        std::map<std::string, Tensor> tensors;
        for (auto item = values.begin(); item != values.end(); ++item)
            if (item.key() != "__metadata__")
                tensors[item.key()] = {item->at("dtype").get<std::string>(), list<size_t>(item->at("shape")),
                                       exactly<size_t, 2>(item->at("data_offsets"))};
        return tensors;
    });
}

EngineRecord read_engine_record(const std::string& text) {
    const json values = parse(text);
    return taken([&] {
        const json& key = values.at("key");
        return EngineRecord{key.at("model").get<std::string>(),  key.at("software").get<std::string>(),
                            key.at("gpu").get<std::string>(),    values.at("sha256").get<std::string>(),
                            values.at("labels").get<size_t>(),   values.value("host_code", false)};
    });
}

}  // namespace hpdval
