// An engine that `hpedge build` made, on the GPU. TensorRT and the CUDA runtime are linked; engines belong to one
// version of TensorRT, and so does a library that runs them.
#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>
#include <stdio.h>

#include <algorithm>
#include <mutex>
#include <system_error>
#include <utility>

#include "engine.hpp"
#include "engine_cache.hpp"
#include "error.hpp"
#include "files.hpp"

static_assert(NV_TENSORRT_MAJOR >= 10, "TensorRT 10.0 or later");

namespace hpdval {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;

const std::string VERSION = std::to_string(NV_TENSORRT_MAJOR) + "." + std::to_string(NV_TENSORRT_MINOR) + "." +
                            std::to_string(NV_TENSORRT_PATCH);

// One for the process: TensorRT keeps a pointer to it.
class Logger final : public nvinfer1::ILogger {
public:
    void log(Severity severity, nvinfer1::AsciiChar const* text) noexcept override {
        if (severity > Severity::kERROR) return;
        const std::lock_guard<std::mutex> lock(mutex_);
        snprintf(last_, sizeof last_, "%s", text);
    }
    // Of the last error, "it gave no reason" before the first.
    std::string last() {
        const std::lock_guard<std::mutex> lock(mutex_);
        return last_;
    }

private:
    std::mutex mutex_;
    char last_[1024] = "it gave no reason";
};

Logger& logger() {
    static Logger only;
    return only;
}

void check(cudaError_t error, const char* call) {
    if (error == cudaSuccess) return;
    // Else the next call would report it again.
    cudaGetLastError();
    const bool absent = error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver;
    if (absent) throw Error(HPEDGE_MISSING, "there is no NVIDIA GPU with a driver here; see `hpedge doctor`.");
    throw Error(error == cudaErrorMemoryAllocation ? HPEDGE_MISSING : HPEDGE_FAILED,
                std::string("CUDA: ") + call + " failed: " + cudaGetErrorString(error) + ".");
}

int current_device() {
    int device = 0;
    check(cudaGetDevice(&device), "cudaGetDevice");
    return device;
}

std::string gpu_name() {
    cudaDeviceProp properties;
    check(cudaGetDeviceProperties(&properties, current_device()), "cudaGetDeviceProperties");
    return properties.name;
}

// The calling thread's device while it lives, and then the one that was there before.
class OnDevice {
public:
    explicit OnDevice(int device) : before_(current_device()) { check(cudaSetDevice(device), "cudaSetDevice"); }
    ~OnDevice() { cudaSetDevice(before_); }
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;

private:
    const int before_;
};

class Stream {
public:
    Stream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags"); }
    ~Stream() { cudaStreamDestroy(stream_); }
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;
    cudaStream_t get() const { return stream_; }
    void wait() const { check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }

private:
    cudaStream_t stream_ = nullptr;
};

class Memory {
public:
    explicit Memory(size_t bytes) { check(cudaMalloc(&data_, bytes), "cudaMalloc"); }
    ~Memory() { cudaFree(data_); }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    void* get() const { return data_; }
    void from_host(const void* source, size_t bytes, const Stream& stream) const {
        check(cudaMemcpyAsync(data_, source, bytes, cudaMemcpyHostToDevice, stream.get()), "cudaMemcpyAsync");
    }
    void to_host(void* target, size_t bytes, const Stream& stream) const {
        check(cudaMemcpyAsync(target, data_, bytes, cudaMemcpyDeviceToHost, stream.get()), "cudaMemcpyAsync");
    }

private:
    void* data_ = nullptr;
};

Dims dims(std::initializer_list<size_t> sides) {
    Dims shape{};
    for (const size_t side : sides) shape.d[shape.nbDims++] = static_cast<int64_t>(side);
    return shape;
}

DataType image_type(Input input) {
    return input == Input::float32 ? DataType::kFLOAT : input == Input::float16 ? DataType::kHALF : DataType::kUINT8;
}

// A plan that its user named: code in it is not run.
PlanFile read_plan(const std::string& path) {
    try {
        return {path, read_file(path), false};
    } catch (const std::system_error& error) {
        throw Error(HPEDGE_USAGE, "engine " + path + " cannot be read (" + error.code().message() + ").");
    }
}

class TensorRtEngine final : public Engine {
public:
    TensorRtEngine(const Bundle& bundle, const PlanFile& plan)
        : bundle_(bundle), path_(plan.path), device_(current_device()),
          runtime_(nvinfer1::createInferRuntime(logger())) {
        if (!runtime_) refuse("has no runtime for");
        runtime_->setEngineHostCodeAllowed(plan.host_code);
        engine_.reset(runtime_->deserializeCudaEngine(plan.data.data(), plan.data.size()));
        if (!engine_) refuse("cannot load");
        check_tensors();
        const size_t labels = bundle.labels.size(), bank = labels * bundle.embed_dim * sizeof(float);
        image_ = std::make_unique<Memory>(batch_ * bundle.image_bytes());
        scores_ = std::make_unique<Memory>(batch_ * labels * sizeof(float));
        patch_scores_ = std::make_unique<Memory>(batch_ * bundle.patches() * labels * sizeof(float));
        global_ = std::make_unique<Memory>(bank);
        local_ = std::make_unique<Memory>(bank);
        global_->from_host(bundle.text_global.data(), bank, stream_);
        local_->from_host(bundle.text_local.data(), bank, stream_);
        stream_.wait();
        context_.reset(engine_->createExecutionContext());
        if (!context_) refuse("has no memory for");
        bind();
    }

    // On its device, whatever thread closes the predictor.
    ~TensorRtEngine() override {
        int before = device_;
        cudaGetDevice(&before);
        cudaSetDevice(device_);
        context_.reset(), engine_.reset(), runtime_.reset();
        cudaSetDevice(before);
    }

    const char* name() const override { return "tensorrt"; }

    void run(const void* images, size_t count, float* scores, float* patch_scores) override {
        const std::lock_guard<std::mutex> lock(mutex_);
        const OnDevice here(device_);
        const size_t labels = bundle_.labels.size(), area = bundle_.patches() * labels;
        for (size_t start = 0; start < count; start += batch_) {
            const size_t part = std::min(batch_, count - start), bytes = bundle_.image_bytes();
            image_->from_host(static_cast<const char*>(images) + start * bytes, part * bytes, stream_);
            set_shape("image", image_shape(part));
            if (!context_->enqueueV3(stream_.get()))
                throw Error(HPEDGE_FAILED, "TensorRT could not run the batch (" + logger().last() + ").");
            scores_->to_host(scores + start * labels, part * labels * sizeof(float), stream_);
            if (patch_scores)
                patch_scores_->to_host(patch_scores + start * area, part * area * sizeof(float), stream_);
            stream_.wait();
        }
    }

private:
    [[noreturn]] void refuse(const std::string& what) const {
        throw Error(HPEDGE_MISSING, "TensorRT " + VERSION + " " + what + " " + path_ + " on this GPU (" +
                                        logger().last() + "); build it here with `hpedge build`.");
    }

    // Of other names or types it is another model's engine.
    void check_tensors() {
        const std::pair<const char*, DataType> expected[] = {{"image", image_type(bundle_.input)},
                                                             {"text_global", DataType::kFLOAT},
                                                             {"text_local", DataType::kFLOAT},
                                                             {"scores", DataType::kFLOAT},
                                                             {"patch_scores", DataType::kFLOAT}};
        for (const auto& [name, type] : expected)
            if (engine_->getTensorIOMode(name) == nvinfer1::TensorIOMode::kNONE ||
                engine_->getTensorDataType(name) != type)
                throw Error(HPEDGE_BAD_DATA, "engine " + path_ + " has no " + name +
                                                 " of the bundle's type; it is not of " + bundle_.path + ".");
        const auto most = [&](const char* name) {
            return static_cast<size_t>(engine_->getProfileShape(name, 0, nvinfer1::OptProfileSelector::kMAX).d[0]);
        };
        batch_ = most("image");
        if (const size_t labels = most("text_global"); labels < bundle_.labels.size())
            throw Error(HPEDGE_USAGE, "engine " + path_ + " takes at most " + std::to_string(labels) +
                                          " labels and the bundle has " + std::to_string(bundle_.labels.size()) +
                                          "; run `hpedge build` with --labels.");
    }

    void bind() {
        const std::pair<const char*, Memory*> tensors[] = {{"image", image_.get()},
                                                           {"text_global", global_.get()},
                                                           {"text_local", local_.get()},
                                                           {"scores", scores_.get()},
                                                           {"patch_scores", patch_scores_.get()}};
        for (const auto& [name, memory] : tensors)
            if (!context_->setTensorAddress(name, memory->get())) refuse("takes no memory for");
        for (const char* name : {"text_global", "text_local"})
            set_shape(name, dims({bundle_.labels.size(), bundle_.embed_dim}));
    }

    Dims image_shape(size_t count) const {
        const size_t side = bundle_.image_size;
        return bundle_.input == Input::uint8 ? dims({count, side, side, 3}) : dims({count, 3, side, side});
    }

    void set_shape(const char* name, const Dims& shape) {
        if (!context_->setInputShape(name, shape))
            throw Error(HPEDGE_BAD_DATA, "engine " + path_ + " does not take " + name + " of the bundle's shape (" +
                                             logger().last() + ").");
    }

    const Bundle& bundle_;
    const std::string path_;
    const int device_;
    size_t batch_ = 0;
    std::mutex mutex_;
    Stream stream_;
    std::unique_ptr<nvinfer1::IRuntime> runtime_;
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
    std::unique_ptr<Memory> image_, global_, local_, scores_, patch_scores_;
    std::unique_ptr<nvinfer1::IExecutionContext> context_;
};

}  // namespace

std::unique_ptr<Engine> open_tensorrt(const Bundle& bundle, const EngineOptions& options) {
    if (!options.engine.empty()) return std::make_unique<TensorRtEngine>(bundle, read_plan(options.engine));
    const auto plan = find_plan(bundle, VERSION, gpu_name());
    if (plan) return std::make_unique<TensorRtEngine>(bundle, *plan);
    throw Error(HPEDGE_MISSING, "there is no engine for this bundle, TensorRT " + VERSION + " and this GPU in " +
                                    engines_folder(bundle.path) + "; run `hpedge build " + bundle.path + "` first.");
}

std::unique_ptr<Engine> find_tensorrt(const Bundle& bundle) {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || !devices) {
        cudaGetLastError();
        return nullptr;
    }
    const auto plan = find_plan(bundle, VERSION, gpu_name());
    return plan ? std::make_unique<TensorRtEngine>(bundle, *plan) : nullptr;
}

}  // namespace hpdval
