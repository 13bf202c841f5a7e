// The JSON of a bundle and of its engines, as plain values. All throw std::invalid_argument, whose text goes on after
// the file's name: "is not JSON (...)".
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <array>
#include <map>
#include <string>
#include <vector>

namespace hpdval {

constexpr int SCHEMA = 1;

// manifest.json, what pictures and scores need of it. files: sha256 by name.
struct Manifest {
    std::vector<std::string> labels;
    std::string precision, input;
    size_t image_size, embed_dim;
    int64_t topk;
    double alpha;
    std::array<size_t, 2> grid;
    std::array<float, 3> mean, std;
    double logit_scale;
    std::map<std::string, std::string> files;
};

// One precision's entry of thresholds.json.
struct Thresholds {
    std::vector<std::string> labels;
    std::vector<float> values;
    double temperature, bias;
    std::string fitted_at;
};

// A tensor in the header of a .safetensors file: bytes [begin, end) behind the header.
struct Tensor {
    std::string dtype;
    std::vector<size_t> shape;
    std::array<size_t, 2> bytes;
};

// engine.json, which `hpedge build` writes beside a plan. software: as in "tensorrt 10.3.0.30". labels: the most that
// it takes. host_code: a plugin's library is in the plan.
struct EngineRecord {
    std::string model, software, gpu, sha256;
    size_t labels;
    bool host_code;
};

Manifest read_manifest(const std::string& text);
Thresholds read_thresholds(const std::string& text, const std::string& precision);
std::map<std::string, Tensor> read_tensors(const std::string& header);
EngineRecord read_engine_record(const std::string& text);

}  // namespace hpdval
