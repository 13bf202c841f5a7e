// A TEST DOUBLE of libcuda.so.1, no part of the product: a "kernel" is a text that names what a kernel is compiled for,
//     hpedge test kernel width=24 half=1 block_c=16 outputs=2
// and a launch computes the head in double on the CPU, block by block of the grid that was asked for, from the
// arguments as a GPU would be handed them. Memory of the "GPU" is plain memory. Prints what it is asked. It proves how
// the plugin calls the driver, and nothing about the GPU's code.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#include "../../kernels/cpu/widen.hpp"

namespace {

enum { SUCCESS = 0, INVALID_VALUE = 1, INVALID_CONTEXT = 201, INVALID_PTX = 218, NOT_FOUND = 500 };

constexpr char ENTRY[] = "head";
constexpr unsigned SHARED_FREE = 48 * 1024, SHARED_MOST = 99 * 1024;

struct Context {
    unsigned long long id;
};

struct Module {
    int width, half, block_c, outputs;
    unsigned shared_allowed;
};

thread_local Context* current = nullptr;

void unit(const void* data, size_t row, const Module& m, std::vector<double>& out) {
    out.resize(m.width);
    double squares = 0;
    for (int e = 0; e < m.width; ++e) {
        const size_t at = row * m.width + e;
        out[e] = m.half ? hpdval::widen_float16(static_cast<const uint16_t*>(data)[at])
                        : static_cast<const float*>(data)[at];
        squares += out[e] * out[e];
    }
    for (double& x : out) x /= std::max(std::sqrt(squares), 1e-12);
}

double dot(const std::vector<double>& a, const std::vector<double>& b) {
    double sum = 0;
    for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
    return sum;
}

template <class T>
T argument(void** arguments, int index) {
    T value;
    memcpy(&value, arguments[index], sizeof value);
    return value;
}

// One class of one image.
void head(const Module& m, void** arguments, int b, int c) {
    const int patches = argument<int>(arguments, 4), classes = argument<int>(arguments, 5);
    const int k = std::min(argument<int>(arguments, 6), patches);
    std::vector<double> cls, patch, text_global, text_local, cosines;
    unit(argument<void*>(arguments, 0), b, m, cls);
    unit(argument<void*>(arguments, 2), c, m, text_global);
    unit(argument<void*>(arguments, 3), c, m, text_local);
    for (int n = 0; n < patches; ++n) {
        unit(argument<void*>(arguments, 1), size_t(b) * patches + n, m, patch);
        cosines.push_back(dot(patch, text_local));
        if (m.outputs > 1)
            argument<float*>(arguments, 9)[(size_t(b) * patches + n) * classes + c] = float(cosines.back());
    }
    std::sort(cosines.begin(), cosines.end(), std::greater<double>());
    double best = 0;
    for (int i = 0; i < k; ++i) best += cosines[i] / k;
    const double alpha = argument<float>(arguments, 7);
    argument<float*>(arguments, 8)[size_t(b) * classes + c] = float(alpha * dot(cls, text_global) + (1 - alpha) * best);
}

}  // namespace

#define FAKE extern "C" __attribute__((visibility("default"))) int

FAKE cuInit(unsigned) { return SUCCESS; }
FAKE cuDeviceGet(int* device, int) { return *device = 0, SUCCESS; }

FAKE cuCtxCreate_v2(void** context, unsigned, int) {
    static std::atomic<unsigned long long> created{0};
    current = new Context{++created};
    *context = current;
    return SUCCESS;
}

FAKE cuCtxSetCurrent(void* context) { return current = static_cast<Context*>(context), SUCCESS; }

FAKE cuCtxGetId(void*, unsigned long long* id) {
    if (!current) return INVALID_CONTEXT;
    return *id = current->id, SUCCESS;
}

FAKE cuMemAlloc_v2(void** pointer, size_t bytes) {
    *pointer = aligned_alloc(256, (bytes / 256 + 1) * 256);
    return SUCCESS;
}

FAKE cuMemcpyHtoD_v2(void* to, const void* from, size_t bytes) { return memcpy(to, from, bytes), SUCCESS; }
FAKE cuMemcpyDtoH_v2(void* to, const void* from, size_t bytes) { return memcpy(to, from, bytes), SUCCESS; }
FAKE cuStreamCreate(void** stream, unsigned) { return *stream = nullptr, SUCCESS; }
FAKE cuStreamSynchronize(void*) { return SUCCESS; }

FAKE cuModuleLoadDataEx(void** module, const void* image, unsigned count, const int* options, void** values) {
    Module m{};
    m.shared_allowed = SHARED_FREE;
    const char* text = static_cast<const char*>(image);
    const int read = sscanf(text, "hpedge test kernel width=%d half=%d block_c=%d outputs=%d", &m.width, &m.half,
                            &m.block_c, &m.outputs);
    if (read != 4) {
        if (count == 2 && options[0] == 5 && options[1] == 6)
            snprintf(static_cast<char*>(values[0]), reinterpret_cast<size_t>(values[1]), "fake log: %.5s", text);
        return INVALID_PTX;
    }
    printf("module of %zu bytes in context %llu\n", strlen(text), current->id);
    *module = new Module(m);
    return SUCCESS;
}

FAKE cuModuleGetFunction(void** function, void* module, const char* name) {
    if (strcmp(name, ENTRY) != 0) return NOT_FOUND;
    return *function = module, SUCCESS;
}

FAKE cuFuncSetAttribute(void* function, int attribute, int value) {
    printf("attribute %d is %d\n", attribute, value);
    if (attribute != 8 || value > int(SHARED_MOST)) return INVALID_VALUE;
    return static_cast<Module*>(function)->shared_allowed = value, SUCCESS;
}

FAKE cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                    unsigned block_y, unsigned block_z, unsigned shared, void*, void** arguments, void** extra) {
    const Module& m = *static_cast<Module*>(function);
    printf("launch grid %u %u %u block %u %u %u shared %u\n", grid_x, grid_y, grid_z, block_x, block_y, block_z,
           shared);
    if (shared > m.shared_allowed || extra || !grid_x || !grid_y || grid_z != 1) return INVALID_VALUE;
    const int classes = argument<int>(arguments, 5);
    for (unsigned b = 0; b < grid_y; ++b)
        for (int c = 0; c < std::min(int(grid_x) * m.block_c, classes); ++c) head(m, arguments, int(b), c);
    return SUCCESS;
}

FAKE cuGetErrorName(int error, const char** name) {
    *name = error == INVALID_PTX ? "CUDA_ERROR_INVALID_PTX" : nullptr;
    return SUCCESS;
}

FAKE cuGetErrorString(int error, const char** text) {
    *text = error == INVALID_PTX ? "a PTX JIT compilation failed" : nullptr;
    return SUCCESS;
}
