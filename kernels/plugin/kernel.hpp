// A compiled kernel, loaded by the CUDA driver, which is looked up when it is first needed: nothing of CUDA is linked.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>

namespace hpdval {

struct LaunchShape {
    unsigned grid_x, grid_y, threads, shared_bytes;
};

// One for each image and entry in a process, shared by every plugin that carries them. Throws std::runtime_error with
// a sentence where the driver is missing or refuses.
class Kernel {
public:
    // `image`: a cubin, or the text of a PTX. A kernel that takes more than 48 KB of shared memory is given leave to.
    static std::shared_ptr<Kernel> find(const std::string& image, const std::string& entry, unsigned shared_bytes);

    Kernel(const std::string& image, const std::string& entry, unsigned shared_bytes)
        : image_(image), entry_(entry), shared_bytes_(shared_bytes) {}

    // Loads the image into the calling thread's CUDA context, once for each context.
    void load() { function(); }

    // `arguments` points to the value of each argument; `stream` belongs to the calling thread's context.
    void launch(const LaunchShape& shape, void** arguments, void* stream);

    const std::string& image() const { return image_; }
    const std::string& entry() const { return entry_; }

private:
    void* function();
    void* load_function() const;

    const std::string image_, entry_;
    const unsigned shared_bytes_;
    std::mutex mutex_;
    // By the context's number, which no later context is given. Modules are never unloaded: at the end of a process,
    // when the last plugin goes, the context may be gone already.
    std::map<unsigned long long, void*> functions_;
};

}  // namespace hpdval
