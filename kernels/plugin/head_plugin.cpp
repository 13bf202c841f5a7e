#include "head_plugin.hpp"

#include <stdint.h>
#include <string.h>

#include <limits>
#include <stdexcept>

namespace hpdval {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginTensorDesc;

namespace {

constexpr int32_t INPUTS = 4;
constexpr const char* NAMES[] = {"cls", "patches", "text_global", "text_local", "scores", "patch_scores"};
constexpr int32_t RANKS[] = {2, 3, 2, 2};
// The grid's second side is the image.
constexpr int64_t MAX_IMAGES = 65535;
// Bytes; the kernel reads 16 at a time.
constexpr uintptr_t ALIGNMENT = 16;

void require(bool holds, const std::string& sentence) {
    if (!holds) throw std::invalid_argument(sentence);
}

std::string text(const Dims& dims) {
    std::string joined;
    for (int32_t i = 0; i < dims.nbDims; ++i) joined += (i ? ", " : "") + std::to_string(dims.d[i]);
    return "[" + joined + "]";
}

std::string text(DataType type) {
    if (type == DataType::kFLOAT) return "fp32";
    return type == DataType::kHALF ? "fp16" : "TensorRT's type " + std::to_string(static_cast<int32_t>(type));
}

std::string shapes(const Dims* dims) {
    std::string joined;
    for (int32_t i = 0; i < INPUTS; ++i) joined += (i ? ", " : "") + (NAMES[i] + (" " + text(dims[i])));
    return joined;
}

// `dims`: shapes of the four inputs.
void check_shapes(const HeadFields& fields, const Dims* dims) {
    bool fit = true;
    for (int32_t i = 0; i < INPUTS; ++i) fit = fit && dims[i].nbDims == RANKS[i];
    fit = fit && dims[1].d[0] == dims[0].d[0] && dims[3].d[0] == dims[2].d[0];
    for (int32_t i = 0; fit && i < INPUTS; ++i) fit = dims[i].d[RANKS[i] - 1] == dims[0].d[1];
    require(fit, "inputs must be cls [B, E], patches [B, N, E], text_global [C, E], text_local [C, E], got " +
                     shapes(dims));
    const int64_t images = dims[0].d[0], width = dims[0].d[1], patches = dims[1].d[1], classes = dims[2].d[0];
    require(width == fields.width, "rows have " + std::to_string(width) + " numbers and the kernel takes " +
                                       std::to_string(fields.width) + "; export this model again");
    require(patches >= 1 && patches <= fields.max_patches,
            "an image has " + std::to_string(patches) + " patches and the kernel takes 1 to " +
                std::to_string(fields.max_patches) + "; export the model for this image size");
    require(images <= MAX_IMAGES, "a batch has " + std::to_string(images) + " images and the kernel takes up to " +
                                      std::to_string(MAX_IMAGES) + "; split it");
    require(classes <= std::numeric_limits<int32_t>::max() - fields.block_c,
            std::to_string(classes) + " labels are more than the kernel can count");
}

}  // namespace

HeadPlugin::HeadPlugin(std::shared_ptr<const HeadFields> fields)
    : fields_(std::move(fields)),
      written_(write_fields(*fields_)),
      collection_{static_cast<int32_t>(written_.size()), written_.data()} {}

nvinfer1::IPluginCapability* HeadPlugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
    switch (type) {
        case nvinfer1::PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore*>(this);
        case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<IPluginV3OneBuild*>(this);
        case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime*>(this);
    }
    return nullptr;
}

nvinfer1::IPluginV3* HeadPlugin::clone() noexcept {
    return guarded<IPluginV3*>(nullptr, [&] { return new HeadPlugin(fields_); });
}

DataType HeadPlugin::dtype() const { return fields_->dtype == "fp16" ? DataType::kHALF : DataType::kFLOAT; }

int32_t HeadPlugin::getOutputDataTypes(DataType* output_types, int32_t outputs, DataType const*,
                                       int32_t) const noexcept {
    for (int32_t i = 0; i < outputs; ++i) output_types[i] = DataType::kFLOAT;
    return 0;
}

int32_t HeadPlugin::getOutputShapes(DimsExprs const* in, int32_t inputs, DimsExprs const*, int32_t, DimsExprs* out,
                                    int32_t outputs, nvinfer1::IExprBuilder&) noexcept {
    return guarded(1, [&] {
        require(inputs == INPUTS, "the node must have 4 inputs, got " + std::to_string(inputs));
        for (int32_t i = 0; i < INPUTS; ++i)
            require(in[i].nbDims == RANKS[i], NAMES[i] + (" must have " + std::to_string(RANKS[i])) +
                                                  " dimensions, got " + std::to_string(in[i].nbDims));
        out[0].nbDims = 2;
        out[0].d[0] = in[0].d[0];
        out[0].d[1] = in[2].d[0];
        if (outputs > 1) {
            out[1].nbDims = 3;
            out[1].d[0] = in[0].d[0];
            out[1].d[1] = in[1].d[1];
            out[1].d[2] = in[2].d[0];
        }
        return 0;
    });
}

bool HeadPlugin::supportsFormatCombination(int32_t position, DynamicPluginTensorDesc const* tensors, int32_t inputs,
                                           int32_t) noexcept {
    const PluginTensorDesc& tensor = tensors[position].desc;
    return tensor.format == nvinfer1::TensorFormat::kLINEAR &&
           tensor.type == (position < inputs ? dtype() : DataType::kFLOAT);
}

int32_t HeadPlugin::configurePlugin(DynamicPluginTensorDesc const* in, int32_t, DynamicPluginTensorDesc const*,
                                    int32_t) noexcept {
    return guarded(1, [&] {
        const Dims least[] = {in[0].min, in[1].min, in[2].min, in[3].min};
        const Dims most[] = {in[0].max, in[1].max, in[2].max, in[3].max};
        check_shapes(*fields_, least);
        check_shapes(*fields_, most);
        return 0;
    });
}

void HeadPlugin::check_types(PluginTensorDesc const* in, PluginTensorDesc const* out) const {
    for (int32_t i = 0; i < INPUTS; ++i)
        require(in[i].type == dtype(), NAMES[i] + (" must be " + fields_->dtype) + ", which the kernel takes, and is " +
                                           text(in[i].type) + "; build the engine strongly typed");
    for (int32_t i = 0; i < getNbOutputs(); ++i)
        require(out[i].type == DataType::kFLOAT,
                std::string(NAMES[INPUTS + i]) + " must be fp32 and is " + text(out[i].type));
}

int32_t HeadPlugin::onShapeChange(PluginTensorDesc const* in, int32_t inputs, PluginTensorDesc const* out,
                                  int32_t outputs) noexcept {
    return guarded(1, [&] {
        require(inputs == INPUTS && outputs == getNbOutputs(), "the node has other inputs or outputs than the kernel");
        const Dims dims[] = {in[0].dims, in[1].dims, in[2].dims, in[3].dims};
        check_shapes(*fields_, dims);
        check_types(in, out);
        // Not in enqueue, which may be recorded into a CUDA graph, where nothing may be loaded.
        fields_->kernel->load();
        return 0;
    });
}

int32_t HeadPlugin::enqueue(PluginTensorDesc const* in, PluginTensorDesc const* out, void const* const* inputs,
                            void* const* outputs, void*, cudaStream_t stream) noexcept {
    return guarded(1, [&] {
        const Dims dims[] = {in[0].dims, in[1].dims, in[2].dims, in[3].dims};
        check_shapes(*fields_, dims);
        check_types(in, out);
        if (dims[0].d[0] > 0 && dims[2].d[0] > 0) launch(in, inputs, outputs, stream);
        return 0;
    });
}

void HeadPlugin::launch(PluginTensorDesc const* in, void const* const* inputs, void* const* outputs,
                        cudaStream_t stream) const {
    const HeadFields& fields = *fields_;
    int32_t patches = static_cast<int32_t>(in[1].dims.d[1]), classes = static_cast<int32_t>(in[2].dims.d[0]);
    int32_t k = fields.topk, alpha_bits;
    memcpy(&alpha_bits, &fields.alpha, sizeof alpha_bits);
    void const* pointers[] = {inputs[0], inputs[1],  inputs[2],
                              inputs[3], outputs[0], fields.patch_scores ? outputs[1] : nullptr};
    for (size_t i = 0; i < 6; ++i)
        require(reinterpret_cast<uintptr_t>(pointers[i]) % ALIGNMENT == 0,
                std::string(NAMES[i]) + " must start at a multiple of 16 bytes; give TensorRT another address");
    // The manifest's order (export/aot.py); a kernel without patch_scores does not read the last one.
    void* arguments[] = {&pointers[0], &pointers[1], &pointers[2], &pointers[3], &patches,
                         &classes,     &k,           &alpha_bits,  &pointers[4], &pointers[5]};
    const LaunchShape shape{static_cast<unsigned>((classes + fields.block_c - 1) / fields.block_c),
                            static_cast<unsigned>(in[0].dims.d[0]), static_cast<unsigned>(fields.threads),
                            static_cast<unsigned>(fields.shared_bytes)};
    fields.kernel->launch(shape, arguments, stream);
}

}  // namespace hpdval
