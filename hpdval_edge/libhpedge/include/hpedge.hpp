// hpedge.h for C++17: a header alone, so the library's ABI stays C. Failures are thrown as hpedge::Error.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "hpedge.h"

namespace hpedge {

class Error : public std::runtime_error {
public:
    Error(hpedge_status status, const std::string& sentence) : std::runtime_error(sentence), status_(status) {}
    hpedge_status status() const { return status_; }

private:
    hpedge_status status_;
};

inline void check(hpedge_status status) {
    if (status != HPEDGE_OK) throw Error(status, hpedge_last_error());
}

// As in hpedge.h; empty strings are its NULL.
struct Options {
    std::string backend, onnxruntime, engine;
    std::optional<float> threshold;
    int32_t threads = 0, top = 0;
};

// What one picture shows. labels: the chosen ones, best first. scores, probabilities: [C]. patch_scores: [N, C].
struct Prediction {
    std::vector<std::string> labels;
    std::vector<float> scores, probabilities, patch_scores;
};

// A packed picture, or one with `stride` bytes from row to row, of any format but NV12.
inline hpedge_image image(const uint8_t* data, int32_t width, int32_t height, hpedge_format format = HPEDGE_RGB,
                          ptrdiff_t stride = 0) {
    return {data, nullptr, stride, 0, width, height, format, 0};
}

inline hpedge_image nv12(const uint8_t* luma, ptrdiff_t luma_stride, const uint8_t* chroma, ptrdiff_t chroma_stride,
                         int32_t width, int32_t height) {
    return {luma, chroma, luma_stride, chroma_stride, width, height, HPEDGE_NV12, 0};
}

// Moves, does not copy; threads may share it.
class Predictor {
public:
    explicit Predictor(const std::string& bundle, const Options& options = {}) {
        const auto text = [](const std::string& value) { return value.empty() ? nullptr : value.c_str(); };
        const hpedge_options given{sizeof(hpedge_options), text(options.backend), text(options.onnxruntime),
                                   text(options.engine), options.threshold ? &*options.threshold : nullptr,
                                   options.threads, options.top};
        hpedge_predictor* opened = nullptr;
        check(hpedge_open(bundle.c_str(), &given, &opened));
        handle_.reset(opened);
        for (size_t i = 0; i < hpedge_label_count(opened); ++i) labels_.emplace_back(hpedge_label(opened, i));
    }

    const std::vector<std::string>& labels() const { return labels_; }
    const float* thresholds() const { return hpedge_thresholds(get()); }
    std::string backend() const { return hpedge_backend(get()); }
    // "" where there is nothing to warn of.
    std::string warning() const { return hpedge_warning(get()) ? hpedge_warning(get()) : ""; }
    // Rows times columns: N.
    size_t patches() const {
        size_t rows = 0, columns = 0;
        check(hpedge_grid(get(), &rows, &columns));
        return rows * columns;
    }

    Prediction operator()(const hpedge_image& picture) const { return std::move(run(&picture, 1, true).front()); }

    // Without patch scores, which for many pictures are many numbers.
    std::vector<Prediction> operator()(const std::vector<hpedge_image>& pictures) const {
        return run(pictures.data(), pictures.size(), false);
    }

    hpedge_predictor* get() const { return handle_.get(); }

private:
    std::vector<Prediction> run(const hpedge_image* pictures, size_t count, bool patches_too) const {
        const size_t width = labels_.size(), area = patches_too ? patches() * width : 0;
        std::vector<float> scores(count * width), chances(count * width), patch_scores(count * area);
        std::vector<int32_t> chosen(count * width);
        check(hpedge_classify(get(), pictures, count, scores.data(), chances.data(),
                              patches_too ? patch_scores.data() : nullptr, chosen.data()));
        std::vector<Prediction> predictions(count);
        for (size_t i = 0; i < count; ++i) {
            const auto row = [&](const std::vector<float>& all, size_t length) {
                return std::vector<float>(all.begin() + i * length, all.begin() + (i + 1) * length);
            };
            predictions[i] = {{}, row(scores, width), row(chances, width), row(patch_scores, area)};
            for (size_t c = i * width; c < (i + 1) * width && chosen[c] >= 0; ++c)
                predictions[i].labels.push_back(labels_[chosen[c]]);
        }
        return predictions;
    }

    struct Close {
        void operator()(hpedge_predictor* predictor) const { hpedge_close(predictor); }
    };
    std::unique_ptr<hpedge_predictor, Close> handle_;
    std::vector<std::string> labels_;
};

}  // namespace hpedge
