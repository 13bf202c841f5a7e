// Calls the plugin as TensorRT does, without TensorRT: makes it from fields, configures it, makes it again from the
// fields that it serialises, attaches it to contexts and enqueues it from several threads. Runs with a real libcuda.so.1
// or with fake_libcuda.cpp.
//
//     plugin_driver PLUGIN.so FOLDER key=value ...
//
// FOLDER holds `kernel`, its image, and the four inputs under their names; the outputs are written there. Keys: the
// plugin's fields but `kernel`; @cls, @patches, @text_global, @text_local, @scores, @patch_scores as TYPE:DIM,DIM,...,
// the type as TensorRT's number; run_threads (of each context) and run_contexts, how many; offset, bytes that `cls` lies
// behind an aligned address.
// Prints messages and return values; the exit status is 1 where the plugin refuses.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <thread>
#include <vector>

using namespace nvinfer1;

namespace {

const char* const TENSORS[] = {"cls", "patches", "text_global", "text_local", "scores", "patch_scores"};
constexpr int INPUTS = 4;

std::map<std::string, std::string> given;
std::string folder;

int number(const char* key, int otherwise) { return given.count(key) ? std::stoi(given[key]) : otherwise; }

std::string read(const std::string& name) {
    std::ifstream file(folder + "/" + name, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

struct Logger final : ILogger {
    void log(Severity severity, AsciiChar const* message) noexcept override {
        std::printf("log %d %s\n", int(severity), message);
    }
};

struct LoggerFinder final : ILoggerFinder {
    ILogger* findLogger() override { return &logger; }
    Logger logger;
};

// A collection with storage of its own, as TensorRT reads it from an ONNX file or from a plan.
struct Fields {
    void add(const PluginField& like, const std::string& data, int32_t length) {
        storage.push_back({like.name, data});
        types.push_back({like.type, length});
    }

    PluginFieldCollection collection() {
        fields.clear();
        for (size_t i = 0; i < storage.size(); ++i)
            fields.emplace_back(storage[i].first.c_str(), storage[i].second.data(), types[i].first, types[i].second);
        return {int32_t(fields.size()), fields.data()};
    }

    std::vector<std::pair<std::string, std::string>> storage;
    std::vector<std::pair<PluginFieldType, int32_t>> types;
    std::vector<PluginField> fields;
};

template <class T>
std::string bytes_of(T value) {
    return {reinterpret_cast<const char*>(&value), sizeof value};
}

Fields fields_given(const PluginFieldCollection& names) {
    Fields fields;
    for (int32_t i = 0; i < names.nbFields; ++i) {
        const PluginField& field = names.fields[i];
        const bool image = !std::strcmp(field.name, "kernel");
        if (!image && !given.count(field.name)) continue;
        const std::string value = image ? read("kernel") : given[field.name];
        if (field.type == PluginFieldType::kINT32) fields.add(field, bytes_of<int32_t>(std::stoi(value)), 1);
        if (field.type == PluginFieldType::kFLOAT32) fields.add(field, bytes_of(std::stof(value)), 1);
        if (field.type == PluginFieldType::kCHAR) fields.add(field, value, int32_t(value.size()));
    }
    return fields;
}

Fields copy(const PluginFieldCollection& written) {
    Fields fields;
    for (int32_t i = 0; i < written.nbFields; ++i) {
        const PluginField& field = written.fields[i];
        const size_t bytes = field.type == PluginFieldType::kCHAR ? field.length : 4 * field.length;
        fields.add(field, {static_cast<const char*>(field.data), bytes}, field.length);
    }
    return fields;
}

std::vector<PluginTensorDesc> tensors_given() {
    std::vector<PluginTensorDesc> tensors;
    for (const char* name : TENSORS) {
        const std::string key = std::string("@") + name;
        if (!given.count(key)) continue;
        PluginTensorDesc tensor{};
        char* at = nullptr;
        tensor.type = DataType(std::strtol(given[key].c_str(), &at, 10));
        while (*at) tensor.dims.d[tensor.dims.nbDims++] = std::strtoll(at + 1, &at, 10);
        tensor.format = TensorFormat::kLINEAR;
        tensors.push_back(tensor);
    }
    return tensors;
}

size_t bytes_of_tensor(const PluginTensorDesc& tensor) {
    size_t bytes = tensor.type == DataType::kHALF ? 2 : 4;
    for (int32_t i = 0; i < tensor.dims.nbDims; ++i) bytes *= tensor.dims.d[i];
    return bytes;
}

// Functions of libcuda.so.1; where there is none, nothing is allocated and the plugin has to say so.
template <class... Arguments>
void cuda(const char* name, Arguments... arguments) {
    static void* library = dlopen("libcuda.so.1", RTLD_NOW);
    if (!library) return;
    const int error = reinterpret_cast<int (*)(Arguments...)>(dlsym(library, name))(arguments...);
    if (error) std::printf("%s: %d\n", name, error), std::exit(3);
}

struct Memory {
    std::vector<void*> pointers;
    void* stream = nullptr;

    explicit Memory(const std::vector<PluginTensorDesc>& tensors) {
        cuda("cuStreamCreate", &stream, 0u);
        for (size_t i = 0; i < tensors.size(); ++i) {
            const size_t bytes = bytes_of_tensor(tensors[i]), offset = i ? 0 : number("offset", 0);
            void* pointer = nullptr;
            cuda("cuMemAlloc_v2", &pointer, bytes + offset + 1);
            pointer = static_cast<char*>(pointer) + offset;
            std::string data = i < INPUTS ? read(TENSORS[i]) : std::string();
            data.resize(bytes, '\xff');  // NaN
            cuda("cuMemcpyHtoD_v2", pointer, static_cast<const void*>(data.data()), bytes);
            pointers.push_back(pointer);
        }
    }

    void write(const std::vector<PluginTensorDesc>& tensors, const std::string& suffix) const {
        cuda("cuStreamSynchronize", stream);
        for (size_t i = INPUTS; i < tensors.size(); ++i) {
            std::string data(bytes_of_tensor(tensors[i]), '\0');
            cuda("cuMemcpyDtoH_v2", static_cast<void*>(&data[0]), static_cast<const void*>(pointers[i]), data.size());
            std::ofstream(folder + "/" + TENSORS[i] + suffix, std::ios::binary) << data;
        }
    }
};

IPluginV3OneRuntime* runtime_of(IPluginV3* plugin) {
    return static_cast<IPluginV3OneRuntime*>(plugin->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
}

int build_phase(IPluginV3* plugin, const std::vector<PluginTensorDesc>& tensors) {
    auto* build = static_cast<IPluginV3OneBuild*>(plugin->getCapabilityInterface(PluginCapabilityType::kBUILD));
    std::vector<DynamicPluginTensorDesc> described;
    for (const PluginTensorDesc& t : tensors) described.push_back({t, t.dims, t.dims, t.dims});
    const int32_t outputs = int32_t(tensors.size()) - INPUTS;
    std::string supported;
    for (size_t i = 0; i < described.size(); ++i)
        supported += build->supportsFormatCombination(int32_t(i), described.data(), INPUTS, outputs) ? '1' : '0';
    std::printf("outputs %d supported %s\n", build->getNbOutputs(), supported.c_str());
    return build->configurePlugin(described.data(), INPUTS, &described[INPUTS], outputs);
}

// One thread of one context; returns what the plugin does.
int run_phase(IPluginV3* plugin, void* context, const std::vector<PluginTensorDesc>& tensors,
              const std::string& suffix) {
    cuda("cuCtxSetCurrent", context);
    const Memory memory(tensors);
    IPluginV3* attached = runtime_of(plugin)->attachToContext(nullptr);
    IPluginV3OneRuntime* runtime = runtime_of(attached);
    const PluginTensorDesc *in = tensors.data(), *out = in + INPUTS;
    int failed = runtime->onShapeChange(in, INPUTS, out, int32_t(tensors.size()) - INPUTS);
    if (!failed)
        failed = runtime->enqueue(in, out, memory.pointers.data(),
                                  const_cast<void* const*>(memory.pointers.data()) + INPUTS, nullptr,
                                  static_cast<cudaStream_t>(memory.stream));
    memory.write(tensors, suffix);
    delete attached;
    return failed;
}

int run_contexts(IPluginV3* plugin, const std::vector<PluginTensorDesc>& tensors) {
    const int contexts = number("run_contexts", 1), threads = number("run_threads", 1);
    std::vector<int> failed(contexts * threads);
    cuda("cuInit", 0u);
    int device = 0;
    cuda("cuDeviceGet", &device, 0);
    for (int c = 0; c < contexts; ++c) {
        void* context = nullptr;
        cuda("cuCtxCreate_v2", &context, 0u, device);
        std::vector<std::thread> running;
        for (int t = c * threads; t < (c + 1) * threads; ++t)
            running.emplace_back([&, t] {
                failed[t] = run_phase(plugin, context, tensors, t ? std::to_string(t) : std::string());
            });
        for (std::thread& thread : running) thread.join();
    }
    for (int each : failed)
        if (each) return each;
    return 0;
}

template <class F>
F function(void* library, const char* name) {
    return reinterpret_cast<F>(dlsym(library, name));
}

}  // namespace

int main(int count, char** arguments) {
    folder = arguments[2];
    for (int i = 3; i < count; ++i) {
        const std::string argument = arguments[i];
        given[argument.substr(0, argument.find('='))] = argument.substr(argument.find('=') + 1);
    }
    void* library = dlopen(arguments[1], RTLD_NOW);
    if (!library) return std::printf("%s\n", dlerror()), 3;
    LoggerFinder finder;
    function<void (*)(ILoggerFinder*)>(library, "setLoggerFinder")(&finder);
    int32_t creators = 0;
    auto* creator = static_cast<IPluginCreatorV3One*>(
        function<IPluginCreatorInterface* const* (*)(int32_t&)>(library, "getCreators")(creators)[0]);
    std::printf("creator %s %s %s\n", creator->getPluginName(), creator->getPluginVersion(),
                creator->getPluginNamespace());

    Fields first = fields_given(*creator->getFieldNames());
    const PluginFieldCollection collection = first.collection();
    IPluginV3* plugin = creator->createPlugin("head", &collection, TensorRTPhase::kBUILD);
    if (!plugin) return 1;
    const std::vector<PluginTensorDesc> tensors = tensors_given();
    const int configured = build_phase(plugin, tensors);
    std::printf("configurePlugin %d\n", configured);

    Fields second = copy(*runtime_of(plugin)->getFieldsToSerialize());
    delete plugin;
    const PluginFieldCollection deserialised = second.collection();
    plugin = creator->createPlugin("head", &deserialised, TensorRTPhase::kRUNTIME);
    const int failed = run_contexts(plugin, tensors);
    std::printf("run %d\n", failed);
    delete plugin;
    return configured || failed;
}
