#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <string>

#include "preprocess.hpp"

namespace py = pybind11;

namespace {

using hpdval::Geometry;
using hpdval::MAX_SIDE;
using hpdval::Plan;

// With noconvert() below, another dtype is the caller's error, never a hidden copy; strides are ours to read.
using Levels = py::array_t<uint8_t, 0>;

void check(bool ok, const char* what) {
    if (!ok) throw py::value_error(what);
}

// The stable layout of the Arrow C data interface.
struct ArrowSchema {
    const char *format, *name, *metadata;
    int64_t flags, n_children;
    ArrowSchema** children;
    ArrowSchema* dictionary;
    void (*release)(ArrowSchema*);
    void* private_data;
};

struct ArrowArray {
    int64_t length, null_count, offset, n_buffers, n_children;
    const void** buffers;
    ArrowArray** children;
    ArrowArray* dictionary;
    void (*release)(ArrowArray*);
    void* private_data;
};

std::shared_ptr<Plan> make_plan(size_t width, size_t height, size_t resized_width, size_t resized_height, size_t left,
                                size_t top, size_t out_width, size_t out_height, bool vertical_first) {
    for (const size_t side : {width, height, out_width, out_height})
        check(side >= 1 && side <= MAX_SIDE, "preprocess: sides are 1 to 65535");
    check(resized_width <= INT32_MAX && resized_height <= INT32_MAX, "preprocess: the resized picture is too large");
    check(left <= resized_width && out_width <= resized_width - left, "preprocess: the crop is wider than the picture");
    check(top <= resized_height && out_height <= resized_height - top,
          "preprocess: the crop is higher than the picture");
    check(!vertical_first || (width != resized_width && height != resized_height),
          "preprocess: nothing comes first where one size does not change");
    return std::make_shared<Plan>(
        Geometry{width, height, resized_width, resized_height, left, top, out_width, out_height, vertical_first});
}

const hpdval::PreprocessIsa& find_isa(const std::string& name) {
    for (const hpdval::PreprocessIsa* isa : hpdval::preprocess_isas())
        if (name == isa->name) return *isa;
    throw py::value_error("preprocess: this machine does not run the instruction set " + name);
}

hpdval::Output make_output(const Geometry& g, py::array& out, const py::object& table, bool swap) {
    const auto width = static_cast<py::ssize_t>(g.out_width), height = static_cast<py::ssize_t>(g.out_height);
    check((out.flags() & py::array::c_style) && out.writeable() && out.ndim() == 3,
          "preprocess: out is a writable C-contiguous array of 3 dimensions");
    if (table.is_none()) {
        check(out.itemsize() == 1 && out.shape(0) == height && out.shape(1) == width && out.shape(2) == 3,
              "preprocess: without a table, out is uint8 [height, width, 3]");
        return {out.mutable_data(), nullptr, 1, swap};
    }
    check(py::isinstance<py::array>(table), "preprocess: table is an array");
    const auto levels = py::reinterpret_borrow<py::array>(table);
    check(out.shape(0) == 3 && out.shape(1) == height && out.shape(2) == width,
          "preprocess: with a table, out is [3, height, width]");
    check((levels.flags() & py::array::c_style) && levels.ndim() == 2 && levels.shape(0) == 3 &&
              levels.shape(1) == 256 && levels.itemsize() == out.itemsize(),
          "preprocess: table is [3, 256], of the dtype of out");
    check(out.itemsize() == 2 || out.itemsize() == 4, "preprocess: words have 2 or 4 bytes");
    return {out.mutable_data(), levels.data(), static_cast<size_t>(out.itemsize()), swap};
}

// A Resizer and what it reads and writes.
class Picture {
public:
    Picture(std::shared_ptr<Plan> plan, const std::string& isa, py::array out, py::object table, bool swap)
        : plan_(std::move(plan)), out_(std::move(out)), table_(std::move(table)),
          resizer_(*plan_, find_isa(isa), make_output(plan_->geometry, out_, table_, swap)) {}

    void push(const Levels& rows) {
        check(rows.ndim() == 3 && rows.shape(1) == static_cast<py::ssize_t>(plan_->geometry.width) &&
                  (rows.shape(2) == 3 || rows.shape(2) == 4),
              "preprocess: rows are [n, width, 3 or 4]");
        check(rows.strides(2) == 1 && rows.strides(1) == rows.shape(2), "preprocess: pixels of a row are contiguous");
        run(rows.data(), rows.strides(0), static_cast<size_t>(rows.shape(0)), static_cast<size_t>(rows.shape(2)));
    }

    // What __arrow_c_array__ gave. False, and nothing is read, unless it is whole rows of four bytes a pixel, as in
    // Pillow's RGB images.
    bool push_arrow(const py::capsule& schema, const py::capsule& array) {
        const auto* type = schema.get_pointer<ArrowSchema>();
        if (std::string(type->format) != "+w:4" || std::string(type->children[0]->format) != "C") return false;
        const auto* pixels = array.get_pointer<ArrowArray>();
        if (pixels->n_children != 1 || pixels->offset != 0 || pixels->null_count != 0) return false;
        const ArrowArray* bytes = pixels->children[0];
        const auto width = static_cast<int64_t>(plan_->geometry.width);
        if (bytes->n_buffers != 2 || bytes->offset != 0 || bytes->length != 4 * pixels->length) return false;
        if (pixels->length % width != 0) return false;
        run(static_cast<const uint8_t*>(bytes->buffers[1]), 4 * width, static_cast<size_t>(pixels->length / width), 4);
        return true;
    }

    void push_nv12(const Levels& luma, const Levels& chroma) {
        const auto width = static_cast<py::ssize_t>(plan_->geometry.width);
        const auto height = static_cast<py::ssize_t>(plan_->geometry.height);
        check(width % 2 == 0 && height % 2 == 0, "preprocess: NV12 pictures have even sides");
        check(luma.ndim() == 2 && luma.shape(0) == height && luma.shape(1) == width && luma.strides(1) == 1,
              "preprocess: luma is [height, width], contiguous in a row");
        check(chroma.ndim() == 2 && chroma.shape(0) == height / 2 && chroma.shape(1) == width && chroma.strides(1) == 1,
              "preprocess: chroma is [height / 2, width], contiguous in a row");
        check(resizer_.rows_left() == plan_->geometry.height, "preprocess: NV12 pictures come in one piece");
        py::gil_scoped_release nogil;
        resizer_.push_nv12(luma.data(), luma.strides(0), chroma.data(), chroma.strides(0));
    }

    size_t rows_left() const { return resizer_.rows_left(); }

private:
    void run(const uint8_t* rows, ptrdiff_t stride, size_t count, size_t bytes) {
        check(count <= resizer_.rows_left(), "preprocess: more rows than the picture has");
        check(resizer_.pixel_bytes() == 0 || resizer_.pixel_bytes() == bytes, "preprocess: pixels of another width");
        py::gil_scoped_release nogil;
        resizer_.push(rows, stride, count, bytes);
    }

    std::shared_ptr<Plan> plan_;
    py::array out_;
    py::object table_;
    hpdval::Resizer resizer_;
};

std::vector<std::string> isa_names() {
    std::vector<std::string> names;
    for (const hpdval::PreprocessIsa* isa : hpdval::preprocess_isas()) names.emplace_back(isa->name);
    return names;
}

}  // namespace

void bind_preprocess(py::module_& m) {
    m.def("preprocess_isas", &isa_names, "Instruction sets of the preprocess kernel that run here, fastest first.");
    py::class_<Plan, std::shared_ptr<Plan>>(m, "PreprocessPlan", "What depends on sizes alone, see preprocess.hpp.")
        .def(py::init(&make_plan), py::arg("width"), py::arg("height"), py::arg("resized_width"),
             py::arg("resized_height"), py::arg("left"), py::arg("top"), py::arg("out_width"), py::arg("out_height"),
             py::arg("vertical_first"))
        .def_readonly("first_row", &Plan::first_row)
        .def_readonly("end_row", &Plan::end_row);
    py::class_<Picture>(m, "PreprocessPicture", "One picture, pushed from top to bottom, see preprocess.hpp.")
        .def(py::init<std::shared_ptr<Plan>, const std::string&, py::array, py::object, bool>(), py::arg("plan"),
             py::arg("isa"), py::arg("out").noconvert(), py::arg("table"), py::arg("swap"))
        .def("push", &Picture::push, py::arg("rows").noconvert())
        .def("push_arrow", &Picture::push_arrow, py::arg("schema"), py::arg("array"))
        .def("push_nv12", &Picture::push_nv12, py::arg("luma").noconvert(), py::arg("chroma").noconvert())
        .def_property_readonly("rows_left", &Picture::rows_left);
}
