// In place of tensorrt_engine.cpp where the library is built without TensorRT.
#include "engine.hpp"
#include "error.hpp"

namespace hpdval {

std::unique_ptr<Engine> open_tensorrt(const Bundle&, const EngineOptions&) {
    throw Error(HPEDGE_MISSING, "this libhpedge was built without TensorRT; build it with -DHPEDGE_TENSORRT=ON, or use "
                                "the backend onnxruntime.");
}

std::unique_ptr<Engine> find_tensorrt(const Bundle&) { return nullptr; }

}  // namespace hpdval
