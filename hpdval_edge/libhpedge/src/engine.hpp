// What runs a bundle's model, with its text banks.
#pragma once

#include <stddef.h>

#include <memory>
#include <string>

#include "bundle.hpp"

namespace hpdval {

// Threads may call `run` at the same time.
class Engine {
public:
    virtual ~Engine() = default;
    virtual const char* name() const = 0;

    // images: `count` of them, at least one, each Bundle::image_bytes() as Preparer makes them. scores: [count, C].
    // patch_scores: [count, N, C], or null. Throws Error.
    virtual void run(const void* images, size_t count, float* scores, float* patch_scores) = 0;
};

// Members as in hpedge_options; empty strings are its NULL.
struct EngineOptions {
    std::string onnxruntime, engine;
    int threads = 0;
};

// Both throw Error: HPEDGE_MISSING without the library, a device or an engine, HPEDGE_BAD_DATA where it refuses the
// model. The bundle outlives the engine. ONNX Runtime's takes the model out of it, so that it is not held twice.
std::unique_ptr<Engine> open_onnxruntime(Bundle& bundle, const EngineOptions& options);
std::unique_ptr<Engine> open_tensorrt(const Bundle& bundle, const EngineOptions& options);

// The engine that `hpedge build` left beside the bundle for this machine; null where this library was built without
// TensorRT, or there is no GPU or no such engine.
std::unique_ptr<Engine> find_tensorrt(const Bundle& bundle);

}  // namespace hpdval
