#include "hpedge.h"

#include <stdio.h>

#include <new>

#include "error.hpp"
#include "predictor.hpp"

struct hpedge_predictor {
    hpdval::Predictor predictor;
};

namespace {

using hpdval::Error;

// Of a fixed size, so that "no memory" can be said as well.
thread_local char last_error[2048] = "";

hpedge_status failed(hpedge_status status, const char* sentence) noexcept {
    snprintf(last_error, sizeof last_error, "%s", sentence);
    return status;
}

// No exception crosses the ABI.
template <class Run>
hpedge_status guarded(Run&& run) noexcept {
    try {
        run();
        return HPEDGE_OK;
    } catch (const Error& error) {
        return failed(error.status(), error.what());
    } catch (const std::bad_alloc&) {
        return failed(HPEDGE_MISSING, "there is no memory left; give fewer pictures at once.");
    } catch (const std::exception& error) {
        return failed(HPEDGE_FAILED, error.what());
    } catch (...) {
        return failed(HPEDGE_FAILED, "an unknown exception.");
    }
}

void require(const void* pointer, const char* name) {
    if (!pointer) throw Error(HPEDGE_USAGE, std::string(name) + " is NULL.");
}

hpdval::PredictorOptions read_options(const hpedge_options* given) {
    hpdval::PredictorOptions options;
    if (!given) return options;
    if (given->size != sizeof(hpedge_options))
        throw Error(HPEDGE_USAGE, "hpedge_options.size is " + std::to_string(given->size) + " and this library's is " +
                                      std::to_string(sizeof(hpedge_options)) +
                                      "; set it to sizeof(hpedge_options), of this library's own header.");
    if (given->backend) options.backend = given->backend;
    if (given->onnxruntime) options.engine.onnxruntime = given->onnxruntime;
    if (given->engine) options.engine.engine = given->engine;
    if (given->threshold) options.threshold = *given->threshold;
    options.engine.threads = given->threads;
    options.top = given->top;
    return options;
}

}  // namespace

const char* hpedge_version(void) { return HPEDGE_VERSION; }

const char* hpedge_last_error(void) { return last_error; }

hpedge_status hpedge_open(const char* bundle, const hpedge_options* options, hpedge_predictor** predictor) {
    return guarded([&] {
        require(predictor, "predictor");
        *predictor = nullptr;
        require(bundle, "bundle");
        *predictor = new hpedge_predictor{{bundle, read_options(options)}};
    });
}

void hpedge_close(hpedge_predictor* predictor) { delete predictor; }

size_t hpedge_label_count(const hpedge_predictor* predictor) {
    return predictor ? predictor->predictor.bundle().labels.size() : 0;
}

const char* hpedge_label(const hpedge_predictor* predictor, size_t column) {
    return column < hpedge_label_count(predictor) ? predictor->predictor.bundle().labels[column].c_str() : nullptr;
}

const float* hpedge_thresholds(const hpedge_predictor* predictor) {
    return predictor ? predictor->predictor.bundle().thresholds.data() : nullptr;
}

hpedge_status hpedge_grid(const hpedge_predictor* predictor, size_t* rows, size_t* columns) {
    return guarded([&] {
        require(predictor, "predictor");
        require(rows, "rows");
        require(columns, "columns");
        *rows = predictor->predictor.bundle().rows, *columns = predictor->predictor.bundle().columns;
    });
}

const char* hpedge_backend(const hpedge_predictor* predictor) {
    return predictor ? predictor->predictor.backend() : nullptr;
}

const char* hpedge_warning(const hpedge_predictor* predictor) {
    return predictor && !predictor->predictor.warning().empty() ? predictor->predictor.warning().c_str() : nullptr;
}

hpedge_status hpedge_classify(hpedge_predictor* predictor, const hpedge_image* images, size_t count, float* scores,
                              float* probabilities, float* patch_scores, int32_t* chosen) {
    return guarded([&] {
        require(predictor, "predictor");
        if (count) require(images, "images");
        predictor->predictor.classify(images, count, scores, probabilities, patch_scores, chosen);
    });
}
