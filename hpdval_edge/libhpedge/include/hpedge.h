/* hpedge in C: opens a bundle (*.hpedge), takes raw pictures, gives scores, labels and probabilities.
 *
 * Every function that can fail returns a status, the exit codes of the command line, and leaves a sentence for
 * hpedge_last_error. Nothing is thrown. NULL is refused where it says nothing of it.
 *
 * Threads: any number of predictors side by side; one predictor may be shared by threads, also during hpedge_classify.
 * With ONNX Runtime shared calls run side by side, with TensorRT they take turns. hpedge_close comes after the last
 * of them. Strings and arrays that functions return belong to the predictor and live until it is closed.
 */
#ifndef HPEDGE_H
#define HPEDGE_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define HPEDGE_API __attribute__((visibility("default")))
#else
#define HPEDGE_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum hpedge_status {
    HPEDGE_OK = 0,
    HPEDGE_FAILED = 1,   /* the engine failed */
    HPEDGE_USAGE = 2,    /* an argument or an option that cannot be honoured */
    HPEDGE_BAD_DATA = 3, /* a bundle or a picture that cannot be read or contradicts itself */
    HPEDGE_MISSING = 4   /* a library, a device, an engine or memory that is not there */
} hpedge_status;

typedef enum hpedge_format {
    HPEDGE_RGB = 0,  /* 3 bytes a pixel */
    HPEDGE_BGR = 1,  /* 3 bytes a pixel, as OpenCV has them */
    HPEDGE_RGBX = 2, /* 4 bytes a pixel, the last one ignored */
    HPEDGE_BGRX = 3,
    HPEDGE_NV12 = 4 /* a plane of luma, one of chroma with U and V in turn; BT.601, limited range, even sides */
} hpedge_format;

/* A decoded picture, upright; only read, and only during hpedge_classify. */
typedef struct hpedge_image {
    const uint8_t* data;     /* the top row; of NV12, of luma */
    const uint8_t* chroma;   /* of NV12: [height / 2, width]; else NULL */
    ptrdiff_t stride;        /* bytes from one row of data to the next below, 0 where rows touch */
    ptrdiff_t chroma_stride; /* the same of chroma */
    int32_t width, height;   /* pixels, 1 to 65535 */
    int32_t format;          /* hpedge_format */
    int32_t reserved;        /* 0 */
} hpedge_image;

/* Zero it and set its size: `hpedge_options options = {sizeof options};` has every default. */
typedef struct hpedge_options {
    size_t size;             /* sizeof(hpedge_options): later versions may add members */
    const char* backend;     /* "onnxruntime", "tensorrt" or "auto"; NULL: "auto", which is TensorRT where this library
                                was built with it and an engine of the bundle is found, else ONNX Runtime */
    const char* onnxruntime; /* path of ONNX Runtime's library; NULL: libonnxruntime.so.1 or libonnxruntime.so, where
                                the system's loader looks */
    const char* engine;      /* path of a TensorRT plan, which is trusted to be the bundle's; NULL: the newest one for
                                the bundle's model and this TensorRT that `hpedge build` left in NAME.engines */
    const float* threshold;  /* one for all labels; NULL: the bundle's own */
    int32_t threads;         /* of ONNX Runtime and of the head on the CPU, 0: their own choice */
    int32_t top;             /* choose that many best labels whatever their scores; 0: those at their thresholds */
} hpedge_options;

typedef struct hpedge_predictor hpedge_predictor;

/* Version of the library, as of the Python package. */
HPEDGE_API const char* hpedge_version(void);

/* Why this thread's last call that failed did so: one sentence, "" before the first. Valid until the next failure. */
HPEDGE_API const char* hpedge_last_error(void);

/* Reads and verifies a bundle, a folder, and loads its model. options: NULL for the defaults. predictor: NULL on
 * failure. */
HPEDGE_API hpedge_status hpedge_open(const char* bundle, const hpedge_options* options, hpedge_predictor** predictor);

/* NULL is fine. */
HPEDGE_API void hpedge_close(hpedge_predictor* predictor);

/* C, the number of labels; the label of a column, UTF-8, NULL where there is none. */
HPEDGE_API size_t hpedge_label_count(const hpedge_predictor* predictor);
HPEDGE_API const char* hpedge_label(const hpedge_predictor* predictor, size_t column);

/* The labels' thresholds [C], those that the bundle holds or the option's. */
HPEDGE_API const float* hpedge_thresholds(const hpedge_predictor* predictor);

/* Rows and columns of patches; N is their product. */
HPEDGE_API hpedge_status hpedge_grid(const hpedge_predictor* predictor, size_t* rows, size_t* columns);

/* "onnxruntime" or "tensorrt". */
HPEDGE_API const char* hpedge_backend(const hpedge_predictor* predictor);

/* A sentence where thresholds and probabilities were fitted at another precision than the bundle's, else NULL. */
HPEDGE_API const char* hpedge_warning(const hpedge_predictor* predictor);

/* Recognises `count` pictures, of any sizes and formats, as one batch. Each output may be NULL; row i is picture i's.
 *
 * scores: [count, C], cosines, in the order of the labels.
 * probabilities: [count, C], each label's by itself.
 * patch_scores: [count, N, C], the local view's cosine of each patch with each label.
 * chosen: [count, C], columns of the chosen labels, best first, and -1 behind them.
 */
HPEDGE_API hpedge_status hpedge_classify(hpedge_predictor* predictor, const hpedge_image* images, size_t count,
                                         float* scores, float* probabilities, float* patch_scores, int32_t* chosen);

#ifdef __cplusplus
}
#endif

#endif
