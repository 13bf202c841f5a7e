// The dual-view head (kernels/head.py) as a layer of TensorRT: inputs cls [B, E], patches [B, N, E], text_global [C, E]
// and text_local [C, E] in half or float; outputs scores [B, C] and, where asked for, patch_scores [B, N, C] in float.
// It launches the kernel `head` of kernels/head_triton.py as export/aot.py compiled it, which travels in its fields.
#pragma once

#include <NvInferRuntime.h>

#include <memory>
#include <vector>

#include "head_fields.hpp"

namespace hpdval {

constexpr char const* PLUGIN_NAME = "DualViewScores";
constexpr char const* PLUGIN_VERSION = "1";
constexpr char const* PLUGIN_NAMESPACE = "hpdval_edge";

// Hands "DualViewScores: `sentence`" to TensorRT's logger as an error; to stderr where TensorRT has given none.
void report(const char* sentence) noexcept;

// What `run` returns; where it throws, reports why and returns `failed`: no exception may reach TensorRT.
template <class Result, class Run>
Result guarded(Result failed, Run&& run) noexcept {
    try {
        return run();
    } catch (const std::exception& error) {
        report(error.what());
        return failed;
    }
}

class HeadPlugin final : public nvinfer1::IPluginV3,
                         public nvinfer1::IPluginV3OneCore,
                         public nvinfer1::IPluginV3OneBuild,
                         public nvinfer1::IPluginV3OneRuntime {
public:
    explicit HeadPlugin(std::shared_ptr<const HeadFields> fields);

    nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
    nvinfer1::IPluginV3* clone() noexcept override;

    nvinfer1::AsciiChar const* getPluginName() const noexcept override { return PLUGIN_NAME; }
    nvinfer1::AsciiChar const* getPluginVersion() const noexcept override { return PLUGIN_VERSION; }
    nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override { return PLUGIN_NAMESPACE; }

    int32_t getNbOutputs() const noexcept override { return 1 + fields_->patch_scores; }
    int32_t getOutputDataTypes(nvinfer1::DataType* output_types, int32_t outputs, nvinfer1::DataType const* input_types,
                               int32_t inputs) const noexcept override;
    int32_t getOutputShapes(nvinfer1::DimsExprs const* in, int32_t inputs, nvinfer1::DimsExprs const* shape_inputs,
                            int32_t n_shape_inputs, nvinfer1::DimsExprs* out, int32_t outputs,
                            nvinfer1::IExprBuilder& builder) noexcept override;
    bool supportsFormatCombination(int32_t position, nvinfer1::DynamicPluginTensorDesc const* tensors, int32_t inputs,
                                   int32_t outputs) noexcept override;
    int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, int32_t inputs,
                            nvinfer1::DynamicPluginTensorDesc const* out, int32_t outputs) noexcept override;

    int32_t onShapeChange(nvinfer1::PluginTensorDesc const* in, int32_t inputs, nvinfer1::PluginTensorDesc const* out,
                          int32_t outputs) noexcept override;
    int32_t enqueue(nvinfer1::PluginTensorDesc const* in, nvinfer1::PluginTensorDesc const* out,
                    void const* const* inputs, void* const* outputs, void* workspace,
                    cudaStream_t stream) noexcept override;
    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override { return clone(); }
    nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override { return &collection_; }

private:
    nvinfer1::DataType dtype() const;
    void check_types(nvinfer1::PluginTensorDesc const* in, nvinfer1::PluginTensorDesc const* out) const;
    void launch(nvinfer1::PluginTensorDesc const* in, void const* const* inputs, void* const* outputs,
                cudaStream_t stream) const;

    // Shared with the clones.
    const std::shared_ptr<const HeadFields> fields_;
    const std::vector<nvinfer1::PluginField> written_;
    const nvinfer1::PluginFieldCollection collection_;
};

}  // namespace hpdval
