// What a node DualViewScores says, as plugin fields: in the ONNX file as attributes, in a plan as serialised fields.
#pragma once

#include <NvInferRuntime.h>

#include <memory>
#include <string>
#include <vector>

#include "kernel.hpp"

namespace hpdval {

struct HeadFields {
    int32_t topk = 0;          // k, clamped to N by the kernel
    float alpha = 0;           // weight of the global view, 0..1
    int32_t block_c = 0;       // classes of a block of threads
    int32_t threads = 0;       // of a block
    int32_t shared_bytes = 0;  // of a block
    int32_t max_patches = 0;   // largest N
    int32_t width = 0;         // E
    int32_t patch_scores = 0;  // 1 where the kernel writes the patches' cosines too
    std::string dtype;         // of the four inputs: "fp16" or "fp32"
    std::shared_ptr<Kernel> kernel;
};

// Name and type of every field.
const std::vector<nvinfer1::PluginField>& field_names();

// Throws std::invalid_argument with a sentence where a field is missing or has a value that no kernel has.
HeadFields read_fields(const nvinfer1::PluginFieldCollection& collection);

// Points into `fields`.
std::vector<nvinfer1::PluginField> write_fields(const HeadFields& fields);

}  // namespace hpdval
