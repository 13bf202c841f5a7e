// A bundle, its engine and what makes labels of scores: hpdval_edge/predictor.py.
#pragma once

#include <stdint.h>

#include <optional>
#include <string>
#include <vector>

#include "bundle.hpp"
#include "engine.hpp"
#include "pictures.hpp"

namespace hpdval {

// threshold: one for all labels, or none for the bundle's. top: that many best labels, 0 for those at their thresholds.
struct PredictorOptions {
    std::string backend = "auto";
    EngineOptions engine;
    std::optional<float> threshold;
    int top = 0;
};

class Predictor {
public:
    Predictor(const std::string& path, const PredictorOptions& options);

    // As hpedge_classify; outputs may be null.
    void classify(const hpedge_image* images, size_t count, float* scores, float* probabilities, float* patch_scores,
                  int32_t* chosen);

    const Bundle& bundle() const { return bundle_; }
    const char* backend() const { return engine_->name(); }
    // Empty where there is nothing to warn of.
    const std::string& warning() const { return warning_; }

private:
    float probability(float score) const;
    void choose(const float* scores, int32_t* chosen) const;

    Bundle bundle_;
    std::unique_ptr<Engine> engine_;
    Preparer preparer_;
    const size_t top_;
    std::string warning_;
};

}  // namespace hpdval
