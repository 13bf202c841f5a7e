#include "head_fields.hpp"

#include <string.h>

#include <limits>
#include <stdexcept>

namespace hpdval {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;

namespace {

bool has(const PluginFieldCollection& collection, const char* name) {
    for (int32_t i = 0; i < collection.nbFields; ++i)
        if (strcmp(collection.fields[i].name, name) == 0 && collection.fields[i].data) return true;
    return false;
}

const PluginField& find(const PluginFieldCollection& collection, const char* name, PluginFieldType type) {
    for (int32_t i = 0; i < collection.nbFields; ++i) {
        const PluginField& field = collection.fields[i];
        if (strcmp(field.name, name) != 0 || !field.data) continue;
        if (field.type == type) return field;
        throw std::invalid_argument(std::string("attribute ") + name + " is of another type than the plugin's");
    }
    throw std::invalid_argument(std::string("attribute ") + name + " is missing; export the bundle again");
}

int32_t read_int(const PluginFieldCollection& collection, const char* name, int32_t least, int32_t most) {
    int32_t value;
    memcpy(&value, find(collection, name, PluginFieldType::kINT32).data, sizeof value);
    if (value >= least && value <= most) return value;
    throw std::invalid_argument(std::string("attribute ") + name + " must be " + std::to_string(least) + " to " +
                                std::to_string(most) + ", got " + std::to_string(value));
}

float read_alpha(const PluginFieldCollection& collection) {
    float value;
    memcpy(&value, find(collection, "alpha", PluginFieldType::kFLOAT32).data, sizeof value);
    if (value >= 0 && value <= 1) return value;
    throw std::invalid_argument("attribute alpha must be 0 to 1, got " + std::to_string(value));
}

std::string read_bytes(const PluginFieldCollection& collection, const char* name) {
    const PluginField& field = find(collection, name, PluginFieldType::kCHAR);
    if (field.length > 0) return {static_cast<const char*>(field.data), static_cast<size_t>(field.length)};
    throw std::invalid_argument(std::string("attribute ") + name + " is empty; export the bundle again");
}

// A text may come with the NUL at its end.
std::string read_text(const PluginFieldCollection& collection, const char* name) {
    return read_bytes(collection, name).c_str();
}

PluginField int_field(const char* name, const int32_t& value) { return {name, &value, PluginFieldType::kINT32, 1}; }

PluginField bytes_field(const char* name, const std::string& value) {
    return {name, value.data(), PluginFieldType::kCHAR, static_cast<int32_t>(value.size())};
}

}  // namespace

const std::vector<PluginField>& field_names() {
    static const std::vector<PluginField> names = [] {
        HeadFields none;
        none.kernel = std::make_shared<Kernel>("", "", 0);
        std::vector<PluginField> fields = write_fields(none);
        for (PluginField& field : fields) field.data = nullptr;
        return fields;
    }();
    return names;
}

HeadFields read_fields(const PluginFieldCollection& collection) {
    constexpr int32_t ANY = std::numeric_limits<int32_t>::max();
    HeadFields fields;
    fields.topk = read_int(collection, "topk", 1, ANY);
    fields.alpha = read_alpha(collection);
    fields.block_c = read_int(collection, "block_c", 1, ANY);
    fields.threads = read_int(collection, "threads", 1, 1024);
    fields.shared_bytes = read_int(collection, "shared_bytes", 0, ANY);
    fields.max_patches = read_int(collection, "max_patches", 1, ANY);
    fields.width = read_int(collection, "width", 1, ANY);
    // A node of one output need not say so.
    fields.patch_scores = has(collection, "patch_scores") ? read_int(collection, "patch_scores", 0, 1) : 0;
    fields.dtype = read_text(collection, "dtype");
    if (fields.dtype != "fp16" && fields.dtype != "fp32")
        throw std::invalid_argument("attribute dtype must be fp16 or fp32, got " + fields.dtype);
    fields.kernel = Kernel::find(read_bytes(collection, "kernel"), read_text(collection, "entry"),
                                 static_cast<unsigned>(fields.shared_bytes));
    return fields;
}

std::vector<PluginField> write_fields(const HeadFields& fields) {
    return {int_field("topk", fields.topk),
            {"alpha", &fields.alpha, PluginFieldType::kFLOAT32, 1},
            int_field("block_c", fields.block_c),
            int_field("threads", fields.threads),
            int_field("shared_bytes", fields.shared_bytes),
            int_field("max_patches", fields.max_patches),
            int_field("width", fields.width),
            int_field("patch_scores", fields.patch_scores),
            bytes_field("dtype", fields.dtype),
            bytes_field("entry", fields.kernel->entry()),
            bytes_field("kernel", fields.kernel->image())};
}

}  // namespace hpdval
