// TensorRT and CUDA for tests: a plan is the text "BATCH LABELS PATCHES SIDE WIDTH TYPE HOST_CODE", where TYPE is the
// image's, and the model is simple enough for numpy. With m the mean of an image's numbers:
//     scores[c] = m * sum(text_global[c]), patch_scores[n, c] = (n + 1) * m * sum(text_local[c])
#include <NvInferRuntime.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <map>
#include <string>

namespace {

using namespace nvinfer1;

struct Model {
    int64_t batch, labels, patches, side, width;
    int type, host_code;
};

float half(uint16_t bits) {
    const int exponent = bits >> 10 & 31;
    const float fraction = static_cast<float>((exponent ? 1024 : 0) + (bits & 1023));
    const float size = ldexpf(fraction, (exponent ? exponent : 1) - 25);
    return bits >> 15 ? -size : size;
}

double sum(const float* row, int64_t count) {
    double total = 0;
    for (int64_t i = 0; i < count; ++i) total += row[i];
    return total;
}

class Context final : public IExecutionContext {
public:
    Context(const Model& model, ILogger& logger) : model_(model), logger_(logger) {}

    bool setTensorAddress(char const* name, void* data) noexcept override {
        addresses_[name] = data;
        return true;
    }

    bool setInputShape(char const* name, Dims const& shape) noexcept override {
        const bool image = !strcmp(name, "image");
        const int64_t rows = shape.d[0], side = model_.side;
        const Dims levels{4, {rows, side, side, 3}}, planes{4, {rows, 3, side, side}}, bank{2, {rows, model_.width}};
        const Dims& wanted = !image ? bank : model_.type == 5 ? levels : planes;
        const bool good = shape.nbDims == wanted.nbDims && !memcmp(shape.d, wanted.d, sizeof(int64_t) * shape.nbDims) &&
                          shape.d[0] >= 1 && shape.d[0] <= (image ? model_.batch : model_.labels);
        if (!good) logger_.log(ILogger::Severity::kERROR, "the double takes no such shape");
        (image ? count_ : classes_) = shape.d[0];
        return good;
    }

    bool enqueueV3(cudaStream_t stream) noexcept override {
        if (!stream || addresses_.size() != 5 || !count_ || !classes_) return false;
        auto* scores = static_cast<float*>(addresses_["scores"]);
        auto* patches = static_cast<float*>(addresses_["patch_scores"]);
        for (int64_t b = 0; b < count_; ++b)
            for (int64_t c = 0; c < classes_; ++c) {
                const double m = mean(b);
                scores[b * classes_ + c] = static_cast<float>(m * bank("text_global", c));
                for (int64_t n = 0; n < model_.patches; ++n)
                    patches[(b * model_.patches + n) * classes_ + c] =
                        static_cast<float>(static_cast<double>(n + 1) * m * bank("text_local", c));
            }
        return true;
    }

private:
    double bank(const char* name, int64_t row) {
        return sum(static_cast<const float*>(addresses_[name]) + row * model_.width, model_.width);
    }

    double mean(int64_t image) {
        const int64_t count = 3 * model_.side * model_.side;
        double total = 0;
        for (int64_t i = image * count; i < (image + 1) * count; ++i) {
            if (model_.type == 0) total += static_cast<const float*>(addresses_["image"])[i];
            if (model_.type == 1) total += half(static_cast<const uint16_t*>(addresses_["image"])[i]);
            if (model_.type == 5) total += static_cast<const uint8_t*>(addresses_["image"])[i];
        }
        return total / static_cast<double>(count);
    }

    const Model model_;
    ILogger& logger_;
    std::map<std::string, void*> addresses_;
    int64_t count_ = 0, classes_ = 0;
};

class Engine final : public ICudaEngine {
public:
    Engine(const Model& model, ILogger& logger) : model_(model), logger_(logger) {}

    TensorIOMode getTensorIOMode(char const* name) const noexcept override {
        for (const char* input : {"image", "text_global", "text_local"})
            if (!strcmp(name, input)) return TensorIOMode::kINPUT;
        return TensorIOMode::kOUTPUT;
    }

    DataType getTensorDataType(char const* name) const noexcept override {
        return strcmp(name, "image") ? DataType::kFLOAT : static_cast<DataType>(model_.type);
    }

    Dims getProfileShape(char const* name, int32_t, OptProfileSelector which) const noexcept override {
        const int64_t most = !strcmp(name, "image") ? model_.batch : model_.labels;
        return {1, {which == OptProfileSelector::kMAX ? most : 1}};
    }

    IExecutionContext* createExecutionContext() noexcept override { return new Context(model_, logger_); }

private:
    const Model model_;
    ILogger& logger_;
};

class Runtime final : public IRuntime {
public:
    explicit Runtime(ILogger& logger) : logger_(logger) {}

    void setEngineHostCodeAllowed(bool allowed) noexcept override { allowed_ = allowed; }

    ICudaEngine* deserializeCudaEngine(void const* data, size_t bytes) noexcept override {
        const std::string text(static_cast<const char*>(data), bytes);
        Model m{};
        const int found = sscanf(text.c_str(), "%ld %ld %ld %ld %ld %d %d", &m.batch, &m.labels, &m.patches, &m.side,
                                 &m.width, &m.type, &m.host_code);
        if (found == 7 && m.host_code <= allowed_) return new Engine(m, logger_);
        logger_.log(ILogger::Severity::kERROR, found == 7 ? "host code is not allowed" : "not a plan of the double");
        return nullptr;
    }

private:
    ILogger& logger_;
    bool allowed_ = false;
};

thread_local int device = 0;

}  // namespace

extern "C" {

IRuntime* nvinfer1::createInferRuntime(ILogger& logger) { return new Runtime(logger); }

cudaError_t cudaGetDeviceCount(int* count) {
    *count = getenv("DOUBLE_NO_GPU") ? 0 : 1;
    return *count ? cudaSuccess : cudaErrorNoDevice;
}
cudaError_t cudaGetDevice(int* found) {
    *found = device;
    return getenv("DOUBLE_NO_GPU") ? cudaErrorNoDevice : cudaSuccess;
}
cudaError_t cudaSetDevice(int chosen) {
    device = chosen;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
    strcpy(properties->name, "Double");
    return cudaSuccess;
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "an error of the double"; }
cudaError_t cudaMalloc(void** data, size_t bytes) {
    const char* most = getenv("DOUBLE_BYTES");
    if (most && bytes > strtoul(most, nullptr, 10)) return cudaErrorMemoryAllocation;
    *data = malloc(bytes);
    return cudaSuccess;
}
cudaError_t cudaFree(void* data) {
    free(data);
    return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* target, const void* source, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
    if (!stream) return cudaErrorInvalidValue;
    memcpy(target, source, bytes);
    return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
    *stream = static_cast<cudaStream_t>(malloc(1));
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    free(stream);
    return cudaSuccess;
}
}
