#include "bundle.hpp"

#include <math.h>
#include <string.h>
#include <sys/stat.h>

#include <stdexcept>
#include <system_error>

#include "documents.hpp"
#include "error.hpp"
#include "files.hpp"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "safetensors are little-endian"
#endif

namespace hpdval {
namespace {

constexpr size_t MAX_IMAGE_SIZE = 8192;
constexpr const char *MANIFEST = "manifest.json", *MODEL = "model.onnx", *TEXT = "text.safetensors",
                     *THRESHOLDS = "thresholds.json", *GOLDEN = "golden.npz";

void require(bool holds, const std::string& reason) {
    if (!holds) throw std::invalid_argument(reason);
}

void check_folder(const std::string& path) {
    struct stat status;
    if (stat(path.c_str(), &status) != 0)
        throw Error(HPEDGE_USAGE, "bundle " + path + " does not exist; `hpedge export` writes one.");
    if (!S_ISDIR(status.st_mode))
        throw Error(HPEDGE_USAGE, "bundle " + path + " is no folder; if it is zipped, unpack it for libhpedge.");
}

std::string read(const std::string& path, const std::string& name) {
    try {
        return read_file(path + "/" + name);
    } catch (const std::system_error& error) {
        throw Error(HPEDGE_BAD_DATA,
                    path + " is no bundle: " + name + " cannot be read (" + error.code().message() + ").");
    }
}

std::string read_checked(const std::string& path, const std::string& name, const std::string& digest) {
    std::string data = read(path, name);
    if (sha256(data) != digest)
        throw Error(HPEDGE_BAD_DATA, "bundle " + path + ": " + name +
                                         " was altered (its sha256 is not the manifest's); export or copy it again.");
    return data;
}

Input input_of(const std::string& kind) {
    require(kind == "float32" || kind == "float16" || kind == "uint8",
            "has input '" + kind + "', which is none of float32, float16, uint8; update hpedge");
    return kind == "float32" ? Input::float32 : kind == "float16" ? Input::float16 : Input::uint8;
}

void take_manifest(const Manifest& manifest, Bundle& bundle) {
    bundle.labels = manifest.labels;
    bundle.precision = manifest.precision;
    bundle.input = input_of(manifest.input);
    bundle.image_size = manifest.image_size;
    bundle.mean = manifest.mean, bundle.std = manifest.std;
    bundle.rows = manifest.grid[0], bundle.columns = manifest.grid[1];
    bundle.embed_dim = manifest.embed_dim;
    bundle.logit_scale = manifest.logit_scale;
    require(!bundle.labels.empty(), "has no labels");
    require(bundle.embed_dim >= 1, "has embed_dim 0");
    require(manifest.topk >= 1 && manifest.alpha >= 0 && manifest.alpha <= 1,
            "has a topk that is not 1 or more or an alpha that is not 0 to 1");
    bundle.topk = static_cast<size_t>(manifest.topk), bundle.alpha = static_cast<float>(manifest.alpha);
    for (const size_t side : {bundle.image_size, bundle.rows, bundle.columns})
        require(side >= 1 && side <= MAX_IMAGE_SIZE, "has an image_size or a grid that is not 1 to 8192");
    for (size_t c = 0; c < 3; ++c)
        require(isfinite(bundle.mean[c]) && isfinite(bundle.std[c]) && bundle.std[c] > 0,
                "has a mean or a std that is not finite, or a std that is not positive");
    for (const char* name : {MODEL, TEXT, THRESHOLDS, GOLDEN})
        require(manifest.files.count(name), std::string("lists no ") + name + "; export it again");
    bundle.model_sha256 = manifest.files.at(MODEL);
}

void take_thresholds(const Thresholds& thresholds, Bundle& bundle) {
    require(thresholds.labels == bundle.labels, "has another label order than the manifest; export it again");
    require(thresholds.values.size() == bundle.labels.size(), "has " + std::to_string(thresholds.values.size()) +
                                                                  " thresholds for " +
                                                                  std::to_string(bundle.labels.size()) + " labels");
    require(thresholds.temperature > 0 && isfinite(thresholds.temperature) && isfinite(thresholds.bias),
            "has a temperature that is not positive or a bias that is not finite");
    bundle.thresholds = thresholds.values;
    bundle.temperature = thresholds.temperature, bundle.bias = thresholds.bias;
    bundle.fitted_at = thresholds.fitted_at;
}

std::string text(const std::vector<size_t>& shape) {
    std::string joined;
    for (const size_t side : shape) joined += (joined.empty() ? "" : ", ") + std::to_string(side);
    return "[" + joined + "]";
}

// The bank `name` of text.safetensors: eight bytes with the header's length, the header, the numbers.
std::vector<float> read_bank(const std::string& file, const std::string& name, const std::vector<size_t>& shape) {
    uint64_t length = 0;
    if (file.size() >= sizeof length) memcpy(&length, file.data(), sizeof length);
    require(file.size() >= sizeof length && length <= file.size() - sizeof length, "has a header that is cut off");
    const auto tensors = read_tensors(file.substr(sizeof length, length));
    require(tensors.count(name), "has no text bank '" + name + "'");
    const Tensor& tensor = tensors.at(name);
    const auto [begin, end] = tensor.bytes;
    require(tensor.dtype == "F32" && tensor.shape == shape, "has a text bank '" + name + "' that is " + tensor.dtype +
                                                                " " + text(tensor.shape) +
                                                                ", the manifest says F32 " + text(shape));
    const size_t bytes = file.size() - sizeof length - length;
    require(begin <= end && end <= bytes && (end - begin) % sizeof(float) == 0 &&
                (end - begin) / sizeof(float) / shape[0] == shape[1] && (end - begin) / sizeof(float) % shape[0] == 0,
            "has a text bank '" + name + "' whose numbers are cut off");
    std::vector<float> bank((end - begin) / sizeof(float));
    if (!bank.empty()) memcpy(bank.data(), file.data() + sizeof length + length + begin, end - begin);
    return bank;
}

}  // namespace

Bundle load_bundle(const std::string& path) {
    check_folder(path);
    Bundle bundle;
    bundle.path = path;
    const char* name = MANIFEST;
    try {
        const Manifest manifest = read_manifest(read(path, name));
        take_manifest(manifest, bundle);
        std::map<std::string, std::string> content;
        // Every file is checked; the content of some is needed here.
        for (const auto& [file, digest] : manifest.files) {
            std::string data = read_checked(path, file, digest);
            if (file == MODEL || file == TEXT || file == THRESHOLDS) content[file] = std::move(data);
        }
        bundle.model = std::move(content[MODEL]);
        name = THRESHOLDS;
        take_thresholds(read_thresholds(content[name], bundle.precision), bundle);
        name = TEXT;
        const std::vector<size_t> shape = {bundle.labels.size(), bundle.embed_dim};
        bundle.text_global = read_bank(content[name], "global", shape);
        bundle.text_local = read_bank(content[name], "local", shape);
    } catch (const std::invalid_argument& error) {
        throw Error(HPEDGE_BAD_DATA, "bundle " + path + ": " + name + " " + error.what() + ".");
    }
    return bundle;
}

}  // namespace hpdval
