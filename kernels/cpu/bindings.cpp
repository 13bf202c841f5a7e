#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <vector>

#include "head.hpp"
#include "text_bank.hpp"

namespace py = pybind11;
using hpdval::HeadIsa;

namespace {

// With noconvert() below, a wrong dtype or layout is the caller's error, never a hidden copy.
using Array = py::array_t<float, py::array::c_style>;

void check(bool ok, const char* what) {
    if (!ok) throw py::value_error(what);
}

std::vector<std::string> isas() {
    std::vector<std::string> names;
    for (const HeadIsa* isa : hpdval::HEAD_ISAS)
        if (isa->available()) names.push_back(isa->name);
    return names;
}

const HeadIsa& find_isa(const std::string& name) {
    for (const HeadIsa* isa : hpdval::HEAD_ISAS)
        if (name == isa->name && isa->available()) return *isa;
    throw py::value_error("this processor has no instruction set '" + name + "'");
}

std::unique_ptr<hpdval::PackedText> pack(const Array& text_global, const Array& text_local, const std::string& isa,
                                         const std::string& precision) {
    check(text_global.ndim() == 2 && text_local.ndim() == 2 && text_global.shape(0) == text_local.shape(0) &&
              text_global.shape(1) == text_local.shape(1) && text_global.shape(1) >= 1,
          "PackedText: text_global and text_local must both be [C, E] with E >= 1");
    const HeadIsa& found = find_isa(isa);
    check(precision == "float32" || precision == "int16", "PackedText: precision must be float32 or int16");
    const auto kind = precision == "int16" ? hpdval::Precision::int16 : hpdval::Precision::float32;
    if (kind == hpdval::Precision::int16 && found.run_int16 == nullptr)
        throw py::value_error("precision 'int16' would not be faster with the instruction set '" + isa +
                              "'; use precision='float32'");
    py::gil_scoped_release nogil;
    return std::make_unique<hpdval::PackedText>(found, text_global.data(), text_local.data(), text_global.shape(0),
                                                text_global.shape(1), kind);
}

// Half-precision patches come as the uint16 that hold their bits.
hpdval::Dtype patch_dtype(const py::array& patches, const std::string& dtype) {
    if (dtype == "float32" && py::isinstance<py::array_t<float>>(patches)) return hpdval::Dtype::float32;
    check(py::isinstance<py::array_t<uint16_t>>(patches), "head: patches must be float32, or uint16 bits of half precision");
    if (dtype == "float16") return hpdval::Dtype::float16;
    check(dtype == "bfloat16", "head: the patches' dtype must be float32, float16 or bfloat16");
    return hpdval::Dtype::bfloat16;
}

void head(const Array& cls, const py::array& patches, const std::string& dtype, const hpdval::PackedText& text,
          size_t k, float alpha, Array& scores, std::optional<Array> patch_scores, size_t threads) {
    const hpdval::TextBank& bank = text.bank();
    check(cls.ndim() == 2 && patches.ndim() == 3, "head: cls must have 2 dimensions and patches 3");
    check(patches.flags() & py::array::c_style, "head: patches must be contiguous");
    const auto images = cls.shape(0), rows = patches.shape(1);
    const auto width = static_cast<py::ssize_t>(bank.width), classes = static_cast<py::ssize_t>(bank.classes);
    check(cls.shape(1) == width && patches.shape(0) == images && patches.shape(2) == width,
          "head: the shapes are not [B, E] and [B, N, E] of the text's E");
    check(k >= 1 && k <= static_cast<size_t>(rows), "head: needs 1 <= k <= N");
    check(scores.ndim() == 2 && scores.shape(0) == images && scores.shape(1) == classes, "head: scores is not [B, C]");
    check(!patch_scores || (patch_scores->ndim() == 3 && patch_scores->shape(0) == images &&
                            patch_scores->shape(1) == rows && patch_scores->shape(2) == classes),
          "head: patch_scores is not [B, N, C]");
    const hpdval::HeadShape shape{static_cast<size_t>(images), static_cast<size_t>(rows), bank.width, k,
                                  patch_dtype(patches, dtype)};
    const hpdval::HeadArrays arrays{cls.data(), patches.data(), scores.mutable_data(),
                                    patch_scores ? patch_scores->mutable_data() : nullptr};
    py::gil_scoped_release nogil;
    hpdval::head(text.isa(), shape, arrays, bank, alpha, threads);
}

}  // namespace

void bind_preprocess(py::module_& m);

PYBIND11_MODULE(_cpu, m, py::mod_gil_not_used()) {
    m.doc() = "CPU kernels; no libtorch, so the wheel builds in isolation and fits any torch.";
    m.def("isas", &isas, "Instruction sets of this processor that the head has code for, fastest first.");
    py::class_<hpdval::PackedText>(m, "PackedText", "Text rows, scaled and packed for one instruction set.")
        .def(py::init(&pack), py::arg("text_global").noconvert(), py::arg("text_local").noconvert(), py::arg("isa"),
             py::arg("precision") = "float32");
    m.def("head", &head, "The dual-view head, see kernels/cpu/head.hpp.", py::arg("cls").noconvert(),
          py::arg("patches").noconvert(), py::arg("dtype"), py::arg("text"), py::arg("k"), py::arg("alpha"),
          py::arg("scores").noconvert(), py::arg("patch_scores").noconvert(), py::arg("threads"));
    bind_preprocess(m);
}
