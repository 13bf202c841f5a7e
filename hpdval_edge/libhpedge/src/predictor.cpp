#include "predictor.hpp"

#include <math.h>

#include <algorithm>
#include <numeric>

#include "error.hpp"

namespace hpdval {
namespace {

void check_options(const PredictorOptions& options, size_t labels) {
    if (options.threshold && isnan(*options.threshold))
        throw Error(HPEDGE_USAGE, "threshold is not a number; give one, or NULL for the bundle's own.");
    if (options.engine.threads < 0)
        throw Error(HPEDGE_USAGE, "threads is " + std::to_string(options.engine.threads) + "; give 0 or more.");
    if (options.top < 0 || static_cast<size_t>(options.top) > labels)
        throw Error(HPEDGE_USAGE, "top is " + std::to_string(options.top) + ", but the bundle has " +
                                      std::to_string(labels) + " labels; choose 1 to " + std::to_string(labels) + ".");
}

// What was named, a backend or an engine, is never replaced.
std::unique_ptr<Engine> open_engine(Bundle& bundle, const PredictorOptions& options) {
    const std::string& name = options.backend;
    if (name != "auto" && name != "onnxruntime" && name != "tensorrt")
        throw Error(HPEDGE_USAGE, "backend '" + name + "' is not one of auto, onnxruntime, tensorrt.");
    if (name == "onnxruntime" && !options.engine.engine.empty())
        throw Error(HPEDGE_USAGE, "engine is a TensorRT plan and backend is onnxruntime; leave one of them out.");
    if (name == "tensorrt" || (name == "auto" && !options.engine.engine.empty()))
        return open_tensorrt(bundle, options.engine);
    if (name == "auto")
        if (auto engine = find_tensorrt(bundle)) return engine;
    return open_onnxruntime(bundle, options.engine);
}

}  // namespace

Predictor::Predictor(const std::string& path, const PredictorOptions& options)
    : bundle_(load_bundle(path)), preparer_(bundle_), top_(static_cast<size_t>(std::max(options.top, 0))) {
    check_options(options, bundle_.labels.size());
    if (options.threshold) bundle_.thresholds.assign(bundle_.labels.size(), *options.threshold);
    engine_ = open_engine(bundle_, options);
    // The engine has what it needs of it.
    std::string().swap(bundle_.model);
    if (bundle_.fitted_at != bundle_.precision)
        warning_ = "bundle " + path + " computes in " + bundle_.precision +
                   ", its thresholds and probabilities were fitted at " + bundle_.fitted_at +
                   "; fit them anew with `hpedge calibrate " + path + " --data VALIDATION_LIST`.";
}

void Predictor::classify(const hpedge_image* images, size_t count, float* scores, float* probabilities,
                         float* patch_scores, int32_t* chosen) {
    if (!count) return;
    const size_t labels = bundle_.labels.size(), bytes = bundle_.image_bytes();
    // operator new aligns it for every type that an engine reads.
    const std::unique_ptr<uint8_t[]> batch(new uint8_t[count * bytes]);
    for (size_t i = 0; i < count; ++i) preparer_.prepare(images[i], i, &batch[i * bytes]);
    std::vector<float> own(scores ? 0 : count * labels);
    float* all = scores ? scores : own.data();
    engine_->run(batch.get(), count, all, patch_scores);
    for (size_t i = 0; probabilities && i < count * labels; ++i) probabilities[i] = probability(all[i]);
    for (size_t i = 0; chosen && i < count; ++i) choose(all + i * labels, chosen + i * labels);
}

// The sigmoid written as a tanh cannot overflow.
float Predictor::probability(float score) const {
    const double logit = (bundle_.logit_scale * static_cast<double>(score) - bundle_.bias) / bundle_.temperature;
    return static_cast<float>(0.5 + 0.5 * tanh(0.5 * logit));
}

void Predictor::choose(const float* scores, int32_t* chosen) const {
    const size_t labels = bundle_.labels.size();
    std::vector<int32_t> order(labels);
    std::iota(order.begin(), order.end(), 0);
    // NaN last, as NumPy sorts.
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
        return scores[a] > scores[b] || (isnan(scores[b]) && !isnan(scores[a]));
    });
    int32_t* end = chosen;
    for (size_t i = 0; i < labels; ++i)
        if (top_ ? i < top_ : scores[order[i]] >= bundle_.thresholds[order[i]]) *end++ = order[i];
    std::fill(end, chosen + labels, -1);
}

}  // namespace hpdval
