#include "kernel.hpp"

#include <dlfcn.h>

#include <stdexcept>
#include <tuple>

namespace hpdval {
namespace {

// From cuda.h, which need not be installed where TensorRT's headers are.
constexpr int MAX_DYNAMIC_SHARED_SIZE_BYTES = 8, JIT_ERROR_LOG_BUFFER = 5, JIT_ERROR_LOG_BUFFER_SIZE_BYTES = 6;
// Shared memory that every kernel may take without asking.
constexpr unsigned SHARED_BYTES_FREE = 48 * 1024;
constexpr size_t JIT_LOG_BYTES = 2048;

struct Driver {
    int (*context_id)(void*, unsigned long long*);
    int (*load_module)(void**, const void*, unsigned, const int*, void**);
    int (*get_function)(void**, void*, const char*);
    int (*set_attribute)(void*, int, int);
    int (*launch)(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**, void**);
    int (*error_name)(int, const char**);
    int (*error_text)(int, const char**);
};

template <class F>
void find(void* library, const char* name, F*& function) {
    function = reinterpret_cast<F*>(dlsym(library, name));
    if (!function)
        throw std::runtime_error(std::string("libcuda.so.1 has no ") + name +
                                 "; it belongs to a driver older than CUDA 12.0, install a newer one");
}

Driver load_driver() {
    void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library)
        throw std::runtime_error(std::string("the CUDA driver cannot be loaded (") + dlerror() +
                                 "); install NVIDIA's driver, or start the container with --runtime nvidia");
    Driver found{};
    find(library, "cuCtxGetId", found.context_id);
    find(library, "cuModuleLoadDataEx", found.load_module);
    find(library, "cuModuleGetFunction", found.get_function);
    find(library, "cuFuncSetAttribute", found.set_attribute);
    find(library, "cuLaunchKernel", found.launch);
    find(library, "cuGetErrorName", found.error_name);
    find(library, "cuGetErrorString", found.error_text);
    return found;
}

const Driver& driver() {
    static const Driver loaded = load_driver();
    return loaded;
}

// As in "CUDA_ERROR_INVALID_VALUE (invalid argument)".
std::string describe(int error) {
    const char *name = nullptr, *text = nullptr;
    driver().error_name(error, &name);
    driver().error_text(error, &text);
    return std::string(name ? name : "CUDA error " + std::to_string(error)) + " (" + (text ? text : "unknown") + ")";
}

void check(int error, const std::string& what) {
    if (error) throw std::runtime_error(what + ": " + describe(error));
}

}  // namespace

std::shared_ptr<Kernel> Kernel::find(const std::string& image, const std::string& entry, unsigned shared_bytes) {
    static std::mutex mutex;
    static std::map<std::tuple<std::string, std::string, unsigned>, std::shared_ptr<Kernel>> kernels;
    const std::lock_guard<std::mutex> lock(mutex);
    std::shared_ptr<Kernel>& kernel = kernels[{entry, image, shared_bytes}];
    if (!kernel) kernel = std::make_shared<Kernel>(image, entry, shared_bytes);
    return kernel;
}

void* Kernel::function() {
    unsigned long long context = 0;
    check(driver().context_id(nullptr, &context), "the calling thread has no CUDA context");
    const std::lock_guard<std::mutex> lock(mutex_);
    void*& function = functions_[context];
    if (!function) function = load_function();
    return function;
}

void* Kernel::load_function() const {
    std::string log(JIT_LOG_BYTES, '\0');
    const int options[] = {JIT_ERROR_LOG_BUFFER, JIT_ERROR_LOG_BUFFER_SIZE_BYTES};
    // The driver takes the size in the place of a pointer.
    void* values[] = {log.data(), reinterpret_cast<void*>(log.size())};
    void *module = nullptr, *function = nullptr;
    const int error = driver().load_module(&module, image_.c_str(), 2, options, values);
    log.resize(log.find('\0') == std::string::npos ? log.size() : log.find('\0'));
    check(error, "the kernel " + entry_ + " cannot be loaded on this GPU; export the bundle with the --target that "
                 "`hpedge doctor` names" + (log.empty() ? "" : "; the driver says: " + log));
    check(driver().get_function(&function, module, entry_.c_str()), "the kernel's image has no entry " + entry_);
    if (shared_bytes_ > SHARED_BYTES_FREE)
        check(driver().set_attribute(function, MAX_DYNAMIC_SHARED_SIZE_BYTES, static_cast<int>(shared_bytes_)),
              "this GPU has no " + std::to_string(shared_bytes_) + " bytes of shared memory for the kernel " + entry_);
    return function;
}

void Kernel::launch(const LaunchShape& shape, void** arguments, void* stream) {
    check(driver().launch(function(), shape.grid_x, shape.grid_y, 1, shape.threads, 1, 1, shape.shared_bytes, stream,
                          arguments, nullptr),
          "the kernel " + entry_ + " cannot be launched");
}

}  // namespace hpdval
