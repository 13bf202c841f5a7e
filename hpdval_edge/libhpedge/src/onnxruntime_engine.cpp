// ONNX Runtime on the CPU, loaded when it is first needed: nothing of it is linked.
#include <dlfcn.h>
#include <string.h>

#include <vector>

#include "engine.hpp"
#include "error.hpp"
#include "onnxruntime_api.hpp"

namespace hpdval {
namespace {

constexpr const char* REMEDY = "pip install onnxruntime has one, capi/libonnxruntime.so.* in its folder, and so has "
                               "every release of ONNX Runtime; name its path in hpedge_options.onnxruntime";

// A loaded library. It stays loaded: its threads may outlive a session.
class Library {
public:
    explicit Library(const std::string& path) {
        void* handle = path.empty() ? open("libonnxruntime.so.1") : open(path.c_str());
        if (!handle && path.empty()) handle = open("libonnxruntime.so");
        if (!handle) throw Error(HPEDGE_MISSING, "ONNX Runtime cannot be loaded (" + reason_ + "); " + REMEDY + ".");
        const auto get_base = reinterpret_cast<const ort::Base* (*)()>(dlsym(handle, "OrtGetApiBase"));
        if (!get_base)
            throw Error(HPEDGE_MISSING, path + " is not ONNX Runtime: it has no OrtGetApiBase; " + REMEDY + ".");
        version_ = get_base()->version();
        table_ = get_base()->get_api(ort::API_VERSION);
        if (!table_)
            throw Error(HPEDGE_MISSING, "ONNX Runtime " + version_ + " is older than 1.18; install a newer one.");
    }

    const std::string& version() const { return version_; }

    template <class Entry, class... Arguments>
    void call(Entry entry, Arguments... arguments) const {
        ort::Status* status = entry(table_)(arguments...);
        if (!status) return;
        const std::string message = ort::GetErrorMessage(table_)(status);
        ort::ReleaseStatus(table_)(status);
        throw std::runtime_error(message);
    }

    template <class Entry, class T>
    void release(Entry entry, T* object) const {
        if (object) entry(table_)(object);
    }

private:
    void* open(const char* name) {
        void* handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);
        if (!handle) reason_ = dlerror();
        return handle;
    }

    std::string reason_, version_;
    const void* const* table_ = nullptr;
};

// One of the API's objects.
template <class T, class Release>
class Owned {
public:
    Owned(const Library& library, Release release) : library_(library), release_(release) {}
    ~Owned() { library_.release(release_, object_); }
    Owned(const Owned&) = delete;
    Owned& operator=(const Owned&) = delete;
    T* get() const { return object_; }
    T** out() { return &object_; }

private:
    const Library& library_;
    const Release release_;
    T* object_ = nullptr;
};

using OwnedValue = Owned<ort::Value, decltype(ort::ReleaseValue)>;

class OnnxRuntimeEngine final : public Engine {
public:
    OnnxRuntimeEngine(const Bundle& bundle, const EngineOptions& options)
        : bundle_(bundle), library_(options.onnxruntime), env_(library_, ort::ReleaseEnv),
          session_(library_, ort::ReleaseSession), memory_(library_, ort::ReleaseMemoryInfo) {
        try {
            Owned<ort::SessionOptions, decltype(ort::ReleaseSessionOptions)> session(library_,
                                                                                    ort::ReleaseSessionOptions);
            library_.call(ort::CreateEnv, ort::LOG_ERRORS, "hpedge", env_.out());
            library_.call(ort::CreateSessionOptions, session.out());
            library_.call(ort::SetSessionLogSeverityLevel, session.get(), ort::LOG_ERRORS);
            library_.call(ort::SetIntraOpNumThreads, session.get(), options.threads);
            library_.call(ort::CreateCpuMemoryInfo, ort::DEVICE_ALLOCATOR, ort::DEFAULT_MEMORY, memory_.out());
            library_.call(ort::CreateSessionFromArray, env_.get(), bundle.model.data(), bundle.model.size(),
                          session.get(), session_.out());
        } catch (const std::runtime_error& error) {
            throw Error(HPEDGE_BAD_DATA, "ONNX Runtime " + library_.version() + " cannot load " + bundle.path +
                                             "/model.onnx: " + error.what() + ".");
        }
    }

    const char* name() const override { return "onnxruntime"; }

    void run(const void* images, size_t count, float* scores, float* patch_scores) override {
        try {
            run_session(images, count, scores, patch_scores);
        } catch (const std::runtime_error& error) {
            throw Error(HPEDGE_FAILED, "ONNX Runtime " + library_.version() + " failed: " + error.what() + ".");
        }
    }

private:
    void run_session(const void* images, size_t count, float* scores, float* patch_scores) {
        const auto size = static_cast<int64_t>(bundle_.image_size), n = static_cast<int64_t>(count);
        const bool levels = bundle_.input == Input::uint8;
        const int type = levels ? ort::UINT8 : bundle_.input == Input::float16 ? ort::FLOAT16 : ort::FLOAT;
        const auto labels = static_cast<int64_t>(bundle_.labels.size());
        const auto width = static_cast<int64_t>(bundle_.embed_dim);
        const std::vector<int64_t> shape = {n, levels ? size : 3, size, levels ? 3 : size}, bank = {labels, width};
        OwnedValue image(library_, ort::ReleaseValue), global(library_, ort::ReleaseValue);
        OwnedValue local(library_, ort::ReleaseValue);
        lend(images, count * bundle_.image_bytes(), shape, type, image);
        lend(bundle_.text_global.data(), bundle_.text_global.size() * sizeof(float), bank, ort::FLOAT, global);
        lend(bundle_.text_local.data(), bundle_.text_local.size() * sizeof(float), bank, ort::FLOAT, local);
        const char* const names[] = {"image", "text_global", "text_local"};
        const ort::Value* const inputs[] = {image.get(), global.get(), local.get()};
        const char* const output_names[] = {"scores", "patch_scores"};
        OwnedValue first(library_, ort::ReleaseValue), second(library_, ort::ReleaseValue);
        ort::Value* outputs[] = {nullptr, nullptr};
        const size_t wanted = patch_scores ? 2 : 1;
        library_.call(ort::Run, session_.get(), nullptr, names, inputs, size_t{3}, output_names, wanted, outputs);
        *first.out() = outputs[0], *second.out() = outputs[1];
        copy(first.get(), count * bundle_.labels.size(), scores);
        if (patch_scores) copy(second.get(), count * bundle_.patches() * bundle_.labels.size(), patch_scores);
    }

    // The API takes inputs as mutable and only reads them.
    void lend(const void* data, size_t bytes, const std::vector<int64_t>& shape, int type, OwnedValue& value) const {
        library_.call(ort::CreateTensorWithDataAsOrtValue, memory_.get(), const_cast<void*>(data), bytes, shape.data(),
                      shape.size(), type, value.out());
    }

    void copy(ort::Value* value, size_t count, float* out) const {
        Owned<ort::TensorInfo, decltype(ort::ReleaseTensorTypeAndShapeInfo)> info(library_,
                                                                                 ort::ReleaseTensorTypeAndShapeInfo);
        size_t found = 0;
        int type = 0;
        void* data = nullptr;
        library_.call(ort::GetTensorTypeAndShape, value, info.out());
        library_.call(ort::GetTensorElementType, info.get(), &type);
        library_.call(ort::GetTensorShapeElementCount, info.get(), &found);
        library_.call(ort::GetTensorMutableData, value, &data);
        if (type != ort::FLOAT || found != count)
            throw std::runtime_error("an output has " + std::to_string(found) + " numbers and should have " +
                                     std::to_string(count));
        memcpy(out, data, count * sizeof(float));
    }

    const Bundle& bundle_;
    const Library library_;
    Owned<ort::Env, decltype(ort::ReleaseEnv)> env_;
    Owned<ort::Session, decltype(ort::ReleaseSession)> session_;
    Owned<ort::MemoryInfo, decltype(ort::ReleaseMemoryInfo)> memory_;
};

}  // namespace

std::unique_ptr<Engine> open_onnxruntime(const Bundle& bundle, const EngineOptions& options) {
    return std::make_unique<OnnxRuntimeEngine>(bundle, options);
}

}  // namespace hpdval
