// The bundle as hpdval_edge/bundle.py reads it, with the same refusals.
#pragma once

#include <stddef.h>

#include <array>
#include <string>
#include <vector>

namespace hpdval {

enum class Input { float32, float16, uint8 };

// text_global, text_local: [C, E]. thresholds: [C]. model: the ONNX file; model_sha256: its digest, also once `model`
// was emptied. alpha weighs the global view, topk patches make the local one. Probabilities:
// sigmoid((logit_scale * s - bias) / temperature).
struct Bundle {
    std::string path, precision, fitted_at, model, model_sha256;
    std::vector<std::string> labels;
    Input input = Input::float32;
    size_t image_size = 0, rows = 0, columns = 0, embed_dim = 0, topk = 1;
    float alpha = 0;
    std::array<float, 3> mean{}, std{};
    double logit_scale = 0, temperature = 1, bias = 0;
    std::vector<float> text_global, text_local, thresholds;

    size_t patches() const { return rows * columns; }
    // Of one image as the model takes it.
    size_t image_bytes() const {
        return 3 * image_size * image_size * (input == Input::float32 ? 4 : input == Input::float16 ? 2 : 1);
    }
};

// Throws Error: HPEDGE_USAGE where there is no such folder or it is zipped, HPEDGE_BAD_DATA where something does not
// fit or was altered.
Bundle load_bundle(const std::string& path);

}  // namespace hpdval
