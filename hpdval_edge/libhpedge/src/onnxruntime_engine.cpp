// ONNX Runtime on the CPU, loaded when it is first needed: nothing of it is linked.
#include <dlfcn.h>
#include <string.h>

#include <array>
#include <optional>
#include <vector>

#include "compiled_head.hpp"
#include "engine.hpp"
#include "error.hpp"
#include "graph_outputs.hpp"
#include "onnxruntime_api.hpp"

namespace hpdval {
namespace {

constexpr const char* REMEDY = "pip install onnxruntime has one, capi/libonnxruntime.so.* in its folder, and so has "
                               "every release of ONNX Runtime; name its path in hpedge_options.onnxruntime";

// The head's inputs inside the graph, which are no outputs of the model as it is written (export/graph.py).
constexpr const char *CLS = "cls", *PATCHES = "patches";

// What ONNX Runtime reports.
class Failure : public std::runtime_error {
public:
    Failure(int code, const std::string& message) : std::runtime_error(message), code_(code) {}
    // As it says of a model that it cannot load.
    bool of_the_model() const {
        return code_ == ort::FAIL || code_ == ort::INVALID_GRAPH || code_ == ort::INVALID_PROTOBUF ||
               code_ == ort::NOT_IMPLEMENTED;
    }

private:
    int code_;
};

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
        const int code = ort::GetErrorCode(table_)(status);
        const std::string message = ort::GetErrorMessage(table_)(status);
        ort::ReleaseStatus(table_)(status);
        throw Failure(code, message);
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

// The compiled head, which takes the head's inputs out of the graph, or the graph's own in bundles that do not name
// them: hpdval_edge/engine_onnxruntime.py.
class OnnxRuntimeEngine final : public Engine {
public:
    OnnxRuntimeEngine(const Bundle& bundle, std::string model, const EngineOptions& options)
        : bundle_(bundle), library_(options.onnxruntime), env_(library_, ort::ReleaseEnv),
          session_(library_, ort::ReleaseSession), memory_(library_, ort::ReleaseMemoryInfo) {
        try {
            Settings settings(library_, ort::ReleaseSessionOptions);
            library_.call(ort::CreateEnv, ort::LOG_ERRORS, "hpedge", env_.out());
            library_.call(ort::CreateSessionOptions, settings.out());
            library_.call(ort::SetSessionLogSeverityLevel, settings.get(), ort::LOG_ERRORS);
            library_.call(ort::SetIntraOpNumThreads, settings.get(), options.threads);
            library_.call(ort::CreateCpuMemoryInfo, ort::DEVICE_ALLOCATOR, ort::DEFAULT_MEMORY, memory_.out());
            if (load_with_border(model, settings))
                head_.emplace(bundle, options.threads);
            else
                load(model, settings);
        } catch (const Failure& error) {
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
    using Settings = Owned<ort::SessionOptions, decltype(ort::ReleaseSessionOptions)>;

    void load(const std::string& model, const Settings& settings) {
        library_.call(ort::CreateSessionFromArray, env_.get(), model.data(), model.size(), settings.get(),
                      session_.out());
    }

    // False, and nothing loaded, where the graph has no values of these names or cannot be loaded.
    bool load_with_border(std::string& model, const Settings& settings) {
        const size_t size = model.size();
        add_outputs(model, {CLS, PATCHES});
        try {
            load(model, settings);
            return true;
        } catch (const Failure& failure) {
            if (!failure.of_the_model()) throw;
        }
        model.resize(size);
        return false;
    }

    void run_session(const void* images, size_t count, float* scores, float* patch_scores) {
        const size_t labels = bundle_.labels.size(), rows = count * bundle_.patches();
        OwnedValue first(library_, ort::ReleaseValue), second(library_, ort::ReleaseValue);
        if (head_) {
            fetch(images, count, {CLS, PATCHES}, first, second);
            const Rows cls = rows_of(first, count * bundle_.embed_dim);
            head_->run(cls, rows_of(second, rows * bundle_.embed_dim), count, scores, patch_scores);
            return;
        }
        fetch(images, count, {"scores", patch_scores ? "patch_scores" : nullptr}, first, second);
        copy(first, count * labels, scores);
        if (patch_scores) copy(second, rows * labels, patch_scores);
    }

    // Runs the session for one or two of its outputs.
    void fetch(const void* images, size_t count, const std::array<const char*, 2>& wanted, OwnedValue& first,
               OwnedValue& second) const {
        const auto size = static_cast<int64_t>(bundle_.image_size), n = static_cast<int64_t>(count);
        const bool levels = bundle_.input == Input::uint8;
        const int type = levels ? ort::UINT8 : bundle_.input == Input::float16 ? ort::FLOAT16 : ort::FLOAT;
        // Where nothing of it is wanted the graph's own head runs on one label: the API cannot leave it out.
        const size_t labels = head_ ? 1 : bundle_.labels.size(), bytes = labels * bundle_.embed_dim * sizeof(float);
        const std::vector<int64_t> shape = {n, levels ? size : 3, size, levels ? 3 : size};
        const std::vector<int64_t> bank = {static_cast<int64_t>(labels), static_cast<int64_t>(bundle_.embed_dim)};
        OwnedValue image(library_, ort::ReleaseValue), global(library_, ort::ReleaseValue);
        OwnedValue local(library_, ort::ReleaseValue);
        lend(images, count * bundle_.image_bytes(), shape, type, image);
        lend(bundle_.text_global.data(), bytes, bank, ort::FLOAT, global);
        lend(bundle_.text_local.data(), bytes, bank, ort::FLOAT, local);
        const char* const names[] = {"image", "text_global", "text_local"};
        const ort::Value* const inputs[] = {image.get(), global.get(), local.get()};
        ort::Value* outputs[] = {nullptr, nullptr};
        library_.call(ort::Run, session_.get(), nullptr, names, inputs, size_t{3}, wanted.data(),
                      size_t{wanted[1] ? 2u : 1u}, outputs);
        *first.out() = outputs[0], *second.out() = outputs[1];
    }

    // The API takes inputs as mutable and only reads them.
    void lend(const void* data, size_t bytes, const std::vector<int64_t>& shape, int type, OwnedValue& value) const {
        library_.call(ort::CreateTensorWithDataAsOrtValue, memory_.get(), const_cast<void*>(data), bytes, shape.data(),
                      shape.size(), type, value.out());
    }

    void copy(const OwnedValue& value, size_t count, float* out) const {
        const Rows rows = rows_of(value, count);
        if (rows.dtype != Dtype::float32) throw std::runtime_error("an output is not in float32");
        memcpy(out, rows.data, count * sizeof(float));
    }

    // An output's `count` numbers, which live as long as it does.
    Rows rows_of(const OwnedValue& value, size_t count) const {
        Owned<ort::TensorInfo, decltype(ort::ReleaseTensorTypeAndShapeInfo)> info(library_,
                                                                                 ort::ReleaseTensorTypeAndShapeInfo);
        size_t found = 0;
        int type = 0;
        void* data = nullptr;
        library_.call(ort::GetTensorTypeAndShape, value.get(), info.out());
        library_.call(ort::GetTensorElementType, info.get(), &type);
        library_.call(ort::GetTensorShapeElementCount, info.get(), &found);
        library_.call(ort::GetTensorMutableData, value.get(), &data);
        if (found != count)
            throw std::runtime_error("an output has " + std::to_string(found) + " numbers and should have " +
                                     std::to_string(count));
        if (type != ort::FLOAT && type != ort::FLOAT16)
            throw std::runtime_error("an output is neither in float32 nor in float16");
        return {data, type == ort::FLOAT ? Dtype::float32 : Dtype::float16};
    }

    const Bundle& bundle_;
    const Library library_;
    Owned<ort::Env, decltype(ort::ReleaseEnv)> env_;
    Owned<ort::Session, decltype(ort::ReleaseSession)> session_;
    Owned<ort::MemoryInfo, decltype(ort::ReleaseMemoryInfo)> memory_;
    std::optional<CompiledHead> head_;
};

}  // namespace

std::unique_ptr<Engine> open_onnxruntime(Bundle& bundle, const EngineOptions& options) {
    return std::make_unique<OnnxRuntimeEngine>(bundle, std::move(bundle.model), options);
}

}  // namespace hpdval
