// Runs every instruction set of the head against loops in double; no framework, so that it also runs under sanitizers
// and an emulator. Prints a line for each instruction set; the exit status is 1 when a score is wrong.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <thread>
#include <vector>

#include "head.hpp"
#include "text_bank.hpp"

using namespace hpdval;

namespace {

using Rows = std::vector<float>;

Rows random_rows(size_t size, std::mt19937& generator) {
    std::normal_distribution<float> normal;
    Rows rows(size);
    for (float& x : rows) x = normal(generator);
    return rows;
}

double cosine(const float* a, const float* b, size_t width) {
    double dot = 0, aa = 0, bb = 0;
    for (size_t e = 0; e < width; ++e) {
        dot += double(a[e]) * b[e];
        aa += double(a[e]) * a[e];
        bb += double(b[e]) * b[e];
    }
    return dot / std::max(std::sqrt(aa), 1e-12) / std::max(std::sqrt(bb), 1e-12);
}

struct Case {
    size_t images, patches, classes, width, k;
};

struct Problem {
    Problem(const Case& c, unsigned seed) : shape(c) {
        std::mt19937 generator(seed);
        cls = random_rows(c.images * c.width, generator);
        patches = random_rows(c.images * c.patches * c.width, generator);
        text_global = random_rows(c.classes * c.width, generator);
        text_local = random_rows(c.classes * c.width, generator);
    }

    double expected(size_t b, size_t c, double alpha) const {
        const size_t width = shape.width;
        std::vector<double> cosines;
        for (size_t n = 0; n < shape.patches; ++n)
            cosines.push_back(cosine(&text_local[c * width], &patches[(b * shape.patches + n) * width], width));
        std::sort(cosines.begin(), cosines.end(), std::greater<double>());
        double best = 0;
        for (size_t i = 0; i < shape.k; ++i) best += cosines[i] / double(shape.k);
        return alpha * cosine(&text_global[c * width], &cls[b * width], width) + (1 - alpha) * best;
    }

    Case shape;
    Rows cls, patches, text_global, text_local;
};

Rows scores_of(const Problem& problem, const PackedText& text, size_t threads) {
    const Case& c = problem.shape;
    // Exactly as long as it must be, so that a write past the end is seen by the address sanitizer.
    Rows scores(c.images * c.classes, std::numeric_limits<float>::quiet_NaN());
    Rows patch_scores(c.images * c.patches * c.classes);
    const HeadShape shape{c.images, c.patches, c.width, c.k, Dtype::float32};
    head(text.isa(), shape, {problem.cls.data(), problem.patches.data(), scores.data(), patch_scores.data()},
         text.bank(), 0.4f, threads);
    return scores;
}

int check(const HeadIsa& isa, const Case& c, size_t threads, Precision precision) {
    const Problem problem(c, unsigned(c.classes + c.patches));
    const PackedText text(isa, problem.text_global.data(), problem.text_local.data(), c.classes, c.width, precision);
    const Rows scores = scores_of(problem, text, threads);
    const bool narrow = precision == Precision::int16;
    const double allowed = 2e-6 + (narrow ? std::sqrt(double(c.width)) / INT16_ONE : 0);
    for (size_t b = 0; b < c.images; ++b)
        for (size_t i = 0; i < c.classes; ++i) {
            const double difference = std::fabs(scores[b * c.classes + i] - problem.expected(b, i, 0.4f));
            if (difference <= allowed) continue;
            std::printf("%s %s [%zu %zu %zu %zu] k %zu: score %zu %zu is off by %g\n", isa.name, narrow ? "int16" : "",
                        c.images, c.patches, c.classes, c.width, c.k, b, i, difference);
            return 1;
        }
    return 0;
}

int check(const HeadIsa& isa, const Case& c, size_t threads) {
    return check(isa, c, threads, Precision::float32) +
           (isa.run_int16 ? check(isa, c, threads, Precision::int16) : 0);
}

// Several callers at once, each asking for several threads.
int check_callers(const HeadIsa& isa) {
    const Problem problem({4, 50, 100, 40, 8}, 1);
    const PackedText text(isa, problem.text_global.data(), problem.text_local.data(), 100, 40);
    const Rows expected = scores_of(problem, text, 1);
    std::vector<int> wrong(4);
    std::vector<std::thread> callers;
    for (size_t i = 0; i < wrong.size(); ++i)
        callers.emplace_back([&, i] {
            for (int round = 0; round < 20; ++round) wrong[i] |= scores_of(problem, text, 3) != expected;
        });
    for (std::thread& caller : callers) caller.join();
    return std::count(wrong.begin(), wrong.end(), 1) != 0;
}

}  // namespace

int main() {
    int failures = 0;
    for (const HeadIsa* isa : HEAD_ISAS) {
        if (!isa->available()) {
            std::printf("%s: not on this processor\n", isa->name);
            continue;
        }
        int failed = 0;
        for (size_t classes : {1, 4, 5, 8, 9, 16, 17, 24, 25, 33, 48, 49, 70})
            for (size_t k : {1, 3, 8, 16, 20, 33, 60}) failed += check(*isa, {2, 61, classes, 19, k}, 2);
        for (size_t patches = 1; patches <= 49; ++patches) failed += check(*isa, {1, patches, 21, 40, 1}, 1);
        failed += check(*isa, {1, 150, 37, 513, 100}, 3);
        failed += check(*isa, {0, 5, 3, 8, 1}, 2) + check(*isa, {3, 5, 0, 8, 1}, 2);
        failed += check_callers(*isa);
        std::printf("%s: %s%s\n", isa->name, failed ? "wrong" : "right", isa->run_int16 ? ", int16 too" : "");
        failures += failed;
    }
    return failures != 0;
}
