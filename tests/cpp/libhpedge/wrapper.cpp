// hpedge.hpp: wrapper BUNDLE LIBONNXRUNTIME.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include <hpedge.hpp>

namespace {

void require(bool holds, const char* what) {
    if (holds) return;
    printf("wrong: %s\n", what);
    exit(1);
}

// Up to what the size of a batch changes in half precision.
bool same(const hpedge::Prediction& a, const hpedge::Prediction& b) {
    bool near = a.labels.size() == b.labels.size() && a.scores.size() == b.scores.size();
    for (size_t i = 0; near && i < a.scores.size(); ++i)
        near = fabsf(a.scores[i] - b.scores[i]) < 2e-3f && fabsf(a.probabilities[i] - b.probabilities[i]) < 2e-2f;
    return near;
}

hpedge_status status_of(const std::string& bundle, const hpedge::Options& options) {
    try {
        hpedge::Predictor predictor(bundle, options);
    } catch (const hpedge::Error& error) {
        require(*error.what(), "an error without a sentence");
        return error.status();
    }
    return HPEDGE_OK;
}

}  // namespace

int main(int, char** argv) {
    hpedge::Options options;
    options.onnxruntime = argv[2], options.threads = 1, options.threshold = -1.0f, options.backend = "onnxruntime";
    const hpedge::Predictor opened(argv[1], options);
    hpedge::Predictor predictor(argv[1], options), moved(std::move(predictor));
    std::vector<uint8_t> pixels(40 * 30 * 4);
    for (size_t i = 0; i < pixels.size(); ++i) pixels[i] = static_cast<uint8_t>(i * 37);
    const hpedge_image rgb = hpedge::image(pixels.data(), 40, 30);
    const hpedge_image bgrx = hpedge::image(pixels.data(), 20, 30, HPEDGE_BGRX, 160);
    const hpedge_image nv12 = hpedge::nv12(pixels.data(), 40, pixels.data() + 1200, 40, 40, 30);
    const auto first = moved(rgb);
    const auto both = opened({rgb, bgrx, nv12});
    require(both.size() == 3 && same(both[0], first) && same(both[1], opened(bgrx)), "one by one and together");
    require(same(both[2], opened(nv12)) && both[2].scores != both[1].scores, "NV12");
    const size_t labels = opened.labels().size();
    require(first.labels.size() == labels && opened.thresholds()[labels - 1] == -1.0f, "the threshold -1");
    require(first.scores.size() == labels && first.patch_scores.size() == labels * opened.patches(), "sizes");
    require(both[0].patch_scores.empty() && opened(std::vector<hpedge_image>{}).empty(), "batches");
    require(opened.backend() == "onnxruntime" && opened.warning().empty(), "what a predictor says");
    require(status_of("absent.hpedge", options) == HPEDGE_USAGE, "an absent bundle");
    options.top = static_cast<int32_t>(labels) + 1;
    require(status_of(argv[1], options) == HPEDGE_USAGE, "too many labels");
    options.top = 0, options.onnxruntime = "absent.so";
    require(status_of(argv[1], options) == HPEDGE_MISSING, "an absent library");
    puts("right");
}
