// What TensorRT asks a plugin library for: its creators, and where to send messages.
#include <NvInferRuntime.h>

#include <atomic>
#include <cstdio>
#include <exception>
#include <string>

#include "head_plugin.hpp"

namespace hpdval {
namespace {

std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

class HeadCreator final : public nvinfer1::IPluginCreatorV3One {
public:
    nvinfer1::AsciiChar const* getPluginName() const noexcept override { return PLUGIN_NAME; }
    nvinfer1::AsciiChar const* getPluginVersion() const noexcept override { return PLUGIN_VERSION; }
    nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override { return PLUGIN_NAMESPACE; }

    nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override { return &names_; }

    nvinfer1::IPluginV3* createPlugin(nvinfer1::AsciiChar const*, nvinfer1::PluginFieldCollection const* collection,
                                      nvinfer1::TensorRTPhase) noexcept override {
        return guarded<nvinfer1::IPluginV3*>(
            nullptr, [&] { return new HeadPlugin(std::make_shared<const HeadFields>(read_fields(*collection))); });
    }

private:
    const nvinfer1::PluginFieldCollection names_{static_cast<int32_t>(field_names().size()), field_names().data()};
};

}  // namespace

void report(const char* sentence) noexcept try {
    const std::string message = std::string(PLUGIN_NAME) + ": " + sentence;
    nvinfer1::ILoggerFinder* finder = logger_finder;
    if (nvinfer1::ILogger* logger = finder ? finder->findLogger() : nullptr)
        logger->log(nvinfer1::ILogger::Severity::kERROR, message.c_str());
    else
        std::fprintf(stderr, "%s\n", message.c_str());
} catch (const std::exception&) {
    // Out of memory: nothing is left to say it with.
}

}  // namespace hpdval

#define HPEDGE_EXPORT extern "C" __attribute__((visibility("default")))

HPEDGE_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
    static hpdval::HeadCreator creator;
    static nvinfer1::IPluginCreatorInterface* const creators[] = {&creator};
    count = 1;
    return creators;
}

HPEDGE_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { hpdval::logger_finder = finder; }
