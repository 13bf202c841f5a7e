/* Runs hpedge.h as its arguments say: driver OUT [name=value ...]
 *
 * bundle, backend, onnxruntime, engine, threshold, threads, top: of hpedge_open. size: of hpedge_options.
 * picture=FORMAT,WIDTH,HEIGHT,STRIDE,CHROMA_STRIDE,OFFSET,FILE: FILE holds its bytes; OFFSET is where its top row
 * begins, of NV12 the chroma. callers: threads that classify all pictures `rounds` times; handles: that they share.
 * want: letters of the outputs wanted, s p l c. Row i of thread t goes to OUT.t.scores and so on.
 */
#undef NDEBUG
#include <assert.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <hpedge.h>

enum { MOST = 64 };

typedef struct caller {
    hpedge_predictor* predictor;
    const hpedge_image* images;
    size_t count;
    int rounds;
    float *scores, *probabilities, *patch_scores;
    int32_t* chosen;
    hpedge_status status;
    char error[2048];
} caller;

static void* classify(void* data) {
    caller* c = data;
    for (int i = 0; i < c->rounds && c->status == HPEDGE_OK; ++i)
        c->status = hpedge_classify(c->predictor, c->images, c->count, c->scores, c->probabilities, c->patch_scores,
                                    c->chosen);
    if (c->status != HPEDGE_OK) snprintf(c->error, sizeof c->error, "%s", hpedge_last_error());
    return NULL;
}

static int fail(hpedge_status status, const char* error) {
    printf("status %d: %s\n", (int)status, error);
    return (int)status;
}

/* In a block of exactly its size, so that a sanitizer sees what is read beyond it. */
static uint8_t* read_all(const char* path) {
    FILE* file = fopen(path, "rb");
    assert(file && fseek(file, 0, SEEK_END) == 0);
    const long size = ftell(file);
    rewind(file);
    uint8_t* data = malloc((size_t)size);
    assert(data && fread(data, 1, (size_t)size, file) == (size_t)size);
    fclose(file);
    return data;
}

static hpedge_image read_picture(const char* text, uint8_t** owned) {
    hpedge_image image = {0};
    int format, width, height, end = 0;
    long stride, chroma_stride, offset;
    const int fields = sscanf(text, "%d,%d,%d,%ld,%ld,%ld,%n", &format, &width, &height, &stride, &chroma_stride,
                              &offset, &end);
    assert(fields == 6);
    *owned = text[end] ? read_all(text + end) : NULL;
    image.format = format, image.width = width, image.height = height;
    image.stride = stride, image.chroma_stride = chroma_stride;
    image.data = *owned && format != HPEDGE_NV12 ? *owned + offset : *owned;
    image.chroma = format == HPEDGE_NV12 && offset ? *owned + offset : NULL;
    return image;
}

static void write_floats(const char* out, int thread, const char* name, const void* data, size_t count) {
    char path[4096];
    snprintf(path, sizeof path, "%s.%d.%s", out, thread, name);
    FILE* file = fopen(path, "wb");
    assert(file && (!data || fwrite(data, 4, count, file) == count));
    fclose(file);
}

static void describe(const hpedge_predictor* predictor) {
    size_t rows = 0, columns = 0;
    assert(hpedge_grid(predictor, &rows, &columns) == HPEDGE_OK);
    printf("version %s backend %s grid %zu %zu\n", hpedge_version(), hpedge_backend(predictor), rows, columns);
    for (size_t i = 0; i < hpedge_label_count(predictor); ++i)
        printf("label %.9g %s\n", hpedge_thresholds(predictor)[i], hpedge_label(predictor, i));
    assert(!hpedge_label(predictor, hpedge_label_count(predictor)));
    printf("warning %s\n", hpedge_warning(predictor) ? hpedge_warning(predictor) : "none");
}

/* Each call with a NULL where there may be none. */
static int nulls(const char* bundle) {
    hpedge_predictor* predictor = (hpedge_predictor*)&predictor;
    hpedge_image image = {0};
    float score;
    size_t side;
    assert(!strcmp(hpedge_last_error(), ""));
    assert(hpedge_open(bundle, NULL, NULL) == HPEDGE_USAGE);
    assert(!strcmp(hpedge_last_error(), "predictor is NULL."));
    assert(hpedge_open(NULL, NULL, &predictor) == HPEDGE_USAGE && !predictor);
    assert(!strcmp(hpedge_last_error(), "bundle is NULL."));
    assert(hpedge_classify(NULL, &image, 1, &score, NULL, NULL, NULL) == HPEDGE_USAGE);
    assert(hpedge_grid(NULL, &side, &side) == HPEDGE_USAGE);
    assert(hpedge_label_count(NULL) == 0 && !hpedge_label(NULL, 0) && !hpedge_thresholds(NULL));
    assert(!hpedge_backend(NULL) && !hpedge_warning(NULL));
    hpedge_close(NULL);
    puts("nulls are refused");
    return 0;
}

static int with_predictor(hpedge_predictor* predictor) {
    hpedge_image image = {0};
    size_t side;
    assert(hpedge_classify(predictor, NULL, 1, NULL, NULL, NULL, NULL) == HPEDGE_USAGE);
    assert(!strcmp(hpedge_last_error(), "images is NULL."));
    assert(hpedge_grid(predictor, NULL, &side) == HPEDGE_USAGE && hpedge_grid(predictor, &side, NULL) == HPEDGE_USAGE);
    assert(hpedge_classify(predictor, NULL, 0, NULL, NULL, NULL, NULL) == HPEDGE_OK);
    assert(hpedge_classify(predictor, &image, 0, NULL, NULL, NULL, NULL) == HPEDGE_OK);
    return 0;
}

static const char* value_of(int argc, char** argv, const char* name, const char* missing) {
    const size_t length = strlen(name);
    for (int i = 2; i < argc; ++i)
        if (!strncmp(argv[i], name, length) && argv[i][length] == '=') return argv[i] + length + 1;
    return missing;
}

static int run_callers(const char* out, caller* callers, int count, size_t labels, size_t patches) {
    pthread_t threads[MOST];
    for (int t = 0; t < count; ++t) assert(!pthread_create(&threads[t], NULL, classify, &callers[t]));
    for (int t = 0; t < count; ++t) assert(!pthread_join(threads[t], NULL));
    int code = 0;
    for (int t = 0; t < count; ++t) {
        caller* c = &callers[t];
        if (c->status != HPEDGE_OK) code = fail(c->status, c->error);
        write_floats(out, t, "scores", c->scores, c->scores ? c->count * labels : 0);
        write_floats(out, t, "probabilities", c->probabilities, c->probabilities ? c->count * labels : 0);
        write_floats(out, t, "patch_scores", c->patch_scores, c->patch_scores ? c->count * labels * patches : 0);
        write_floats(out, t, "chosen", c->chosen, c->chosen ? c->count * labels : 0);
        free(c->scores), free(c->probabilities), free(c->patch_scores), free(c->chosen);
    }
    return code;
}

static int run(int argc, char** argv, hpedge_predictor** predictors, int handles) {
    hpedge_image images[MOST];
    uint8_t* owned[MOST];
    size_t count = 0, rows = 0, columns = 0;
    for (int i = 2; i < argc; ++i)
        if (!strncmp(argv[i], "picture=", 8)) {
            images[count] = read_picture(argv[i] + 8, &owned[count]);
            ++count;
        }
    assert(hpedge_grid(predictors[0], &rows, &columns) == HPEDGE_OK);
    const size_t labels = hpedge_label_count(predictors[0]), patches = rows * columns;
    const char* want = value_of(argc, argv, "want", "splc");
    const int number = atoi(value_of(argc, argv, "callers", "1"));
    caller* callers = calloc((size_t)number, sizeof *callers);
    for (int t = 0; t < number; ++t) {
        caller* c = &callers[t];
        c->predictor = predictors[t % handles], c->images = images, c->count = count;
        c->rounds = atoi(value_of(argc, argv, "rounds", "1"));
        /* Blocks of exactly the size that is promised. */
        if (strchr(want, 's')) c->scores = malloc(count * labels * sizeof(float));
        if (strchr(want, 'p')) c->probabilities = malloc(count * labels * sizeof(float));
        if (strchr(want, 'l')) c->patch_scores = malloc(count * labels * patches * sizeof(float));
        if (strchr(want, 'c')) c->chosen = malloc(count * labels * sizeof(int32_t));
    }
    const int code = run_callers(argv[1], callers, number, labels, patches);
    for (size_t i = 0; i < count; ++i) free(owned[i]);
    free(callers);
    return code;
}

int main(int argc, char** argv) {
    const char* bundle = value_of(argc, argv, "bundle", NULL);
    if (argc < 2 || !strcmp(argv[1], "nulls")) return nulls(bundle);
    const char* level = value_of(argc, argv, "threshold", NULL);
    const float threshold = level ? strtof(level, NULL) : 0;
    const hpedge_options options = {strtoul(value_of(argc, argv, "size", "0"), NULL, 10) + sizeof options,
                                    value_of(argc, argv, "backend", NULL),
                                    value_of(argc, argv, "onnxruntime", NULL),
                                    value_of(argc, argv, "engine", NULL),
                                    level ? &threshold : NULL,
                                    atoi(value_of(argc, argv, "threads", "1")),
                                    atoi(value_of(argc, argv, "top", "0"))};
    hpedge_predictor* predictors[MOST] = {NULL};
    const int handles = atoi(value_of(argc, argv, "handles", "1"));
    int code = 0;
    for (int i = 0; i < handles && !code; ++i) {
        const hpedge_status status = hpedge_open(bundle, &options, &predictors[i]);
        if (status != HPEDGE_OK) {
            assert(!predictors[i]);
            code = fail(status, hpedge_last_error());
        }
    }
    if (!code) describe(predictors[0]);
    if (!code) code = with_predictor(predictors[0]);
    if (!code) code = run(argc, argv, predictors, handles);
    for (int i = 0; i < handles; ++i) hpedge_close(predictors[i]);
    return code;
}
