#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

#include "head.hpp"

namespace py = pybind11;

namespace {

// With noconvert() below, a wrong dtype or layout is the caller's error, never a hidden copy.
using Array = py::array_t<float, py::array::c_style>;

void check(bool ok, const char* what) {
    if (!ok) throw py::value_error(what);
}

void head(const Array& cls, const Array& patches, const Array& text_global, const Array& text_local, size_t k,
          float alpha, Array& scores, std::optional<Array> patch_scores, size_t threads) {
    check(cls.ndim() == 2 && patches.ndim() == 3 && text_global.ndim() == 2 && text_local.ndim() == 2,
          "head: cls, text_global and text_local have 2 dimensions, patches has 3");
    const auto images = cls.shape(0), width = cls.shape(1), rows = patches.shape(1), classes = text_global.shape(0);
    check(patches.shape(0) == images && patches.shape(2) == width && text_global.shape(1) == width &&
              text_local.shape(0) == classes && text_local.shape(1) == width,
          "head: the shapes are not [B, E], [B, N, E], [C, E], [C, E]");
    check(width >= 1 && k >= 1 && k <= static_cast<size_t>(rows), "head: needs E >= 1 and 1 <= k <= N");
    check(scores.ndim() == 2 && scores.shape(0) == images && scores.shape(1) == classes, "head: scores is not [B, C]");
    check(!patch_scores || (patch_scores->ndim() == 3 && patch_scores->shape(0) == images &&
                            patch_scores->shape(1) == rows && patch_scores->shape(2) == classes),
          "head: patch_scores is not [B, N, C]");
    const hpdval::HeadShape shape{static_cast<size_t>(images), static_cast<size_t>(rows), static_cast<size_t>(classes),
                                  static_cast<size_t>(width), k};
    const hpdval::HeadArrays arrays{cls.data(),
                                    patches.data(),
                                    text_global.data(),
                                    text_local.data(),
                                    scores.mutable_data(),
                                    patch_scores ? patch_scores->mutable_data() : nullptr};
    py::gil_scoped_release nogil;
    hpdval::head_generic(shape, arrays, alpha, threads);
}

}  // namespace

PYBIND11_MODULE(_cpu, m, py::mod_gil_not_used()) {
    m.doc() = "CPU kernels; no libtorch, so the wheel builds in isolation and fits any torch.";
    m.def("head", &head, "The dual-view head, see kernels/cpu/head.hpp.", py::arg("cls").noconvert(),
          py::arg("patches").noconvert(), py::arg("text_global").noconvert(), py::arg("text_local").noconvert(),
          py::arg("k"), py::arg("alpha"), py::arg("scores").noconvert(), py::arg("patch_scores").noconvert(),
          py::arg("threads"));
}
