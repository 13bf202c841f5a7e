// Labels of a picture: classify BUNDLE PICTURE.ppm [LIBONNXRUNTIME]. Any tool writes PPM, e.g. `djpeg photo.jpg`.
#include <cstdio>
#include <fstream>
#include <iostream>
#include <vector>

#include <hpedge.hpp>

int main(int argc, char** argv) {
    if (argc < 3) {
        std::cerr << "usage: classify BUNDLE PICTURE.ppm [LIBONNXRUNTIME]\n";
        return HPEDGE_USAGE;
    }
    std::ifstream file(argv[2], std::ios::binary);
    std::string kind;
    int width = 0, height = 0, most = 0;
    file >> kind >> width >> height >> most;
    if (!file.ignore() || kind != "P6" || most != 255 || width < 1 || height < 1 || width > 65535 || height > 65535) {
        std::cerr << argv[2] << " is no PPM of 8 bits\n";
        return HPEDGE_BAD_DATA;
    }
    std::vector<uint8_t> pixels(size_t{3} * width * height);
    if (!file.read(reinterpret_cast<char*>(pixels.data()), pixels.size())) {
        std::cerr << argv[2] << " is cut off\n";
        return HPEDGE_BAD_DATA;
    }
    try {
        hpedge::Options options;
        if (argc > 3) options.onnxruntime = argv[3];
        const hpedge::Predictor predictor(argv[1], options);
        const auto prediction = predictor(hpedge::image(pixels.data(), width, height));
        const std::vector<std::string>& labels = predictor.labels();
        for (size_t c = 0; c < labels.size(); ++c)
            std::printf("%s %.9g %.9g\n", labels[c].c_str(), prediction.scores[c], prediction.probabilities[c]);
        for (const std::string& label : prediction.labels) std::printf("chosen %s\n", label.c_str());
    } catch (const hpedge::Error& error) {
        std::cerr << "hpedge: " << error.what() << "\n";
        return error.status();
    }
}
