// Calls the parser library as nvinfer does, by name after dlopen, with what a test wrote on stdin; prints the answer.
//
//   driver LIBRARY parse < thresholds layers          -> "true" or "false", then one object per line
//   driver LIBRARY initialize HEIGHT WIDTH BATCH < layers  -> "true" or "false", then the values of each layer
// thresholds: number of classes, how many thresholds, each; layers: how many, each: name type values...
// (type 0 float, 3 int)
#include <dlfcn.h>
#include <stdint.h>

#include <cstdlib>
#include <cstring>
#include <iostream>
#include <list>
#include <string>
#include <vector>

#include "nvdsinfer_custom_impl.h"

using Layers = std::vector<NvDsInferLayerInfo>;
using Parse = bool (*)(Layers const&, NvDsInferNetworkInfo const&, NvDsInferParseDetectionParams const&,
                       std::vector<NvDsInferObjectDetectionInfo>&);
using Initialize = bool (*)(Layers const&, NvDsInferNetworkInfo const&, unsigned int);

static std::list<std::vector<uint32_t>> buffers;
static std::list<std::string> names;

static Layers readLayers(unsigned copies) {
    size_t count = 0;
    std::cin >> count;
    Layers layers(count);
    for (NvDsInferLayerInfo& layer : layers) {
        std::string name, text;
        int type = 0;
        unsigned number = 0;
        std::cin >> name >> type >> number;
        std::vector<uint32_t> values(number);
        for (uint32_t& value : values) {
            std::cin >> text;
            const float real = std::strtof(text.c_str(), nullptr);
            const int32_t whole = static_cast<int32_t>(std::atoi(text.c_str()));
            if (type == FLOAT) {
                std::memcpy(&value, &real, 4);
            } else {
                std::memcpy(&value, &whole, 4);
            }
        }
        values.resize(static_cast<size_t>(number) * copies);  // exactly: a sanitizer sees a write beyond
        buffers.push_back(values);
        names.push_back(name);
        std::memset(static_cast<void*>(&layer), 0, sizeof(layer));
        layer.dataType = static_cast<NvDsInferDataType>(type);
        layer.inferDims.numDims = 1;
        layer.inferDims.d[0] = layer.inferDims.numElements = number;
        layer.layerName = names.back().c_str();
        layer.buffer = buffers.back().data();
    }
    return layers;
}

int main(int argc, char** argv) {
    void* library = argc > 2 ? dlopen(argv[1], RTLD_LAZY) : nullptr;
    if (library == nullptr) {
        std::cerr << dlerror() << "\n";
        return 3;
    }
    std::cout << std::hexfloat;
    if (std::string(argv[2]) == "parse") {
        NvDsInferParseDetectionParams parameters;
        size_t count = 0;
        std::cin >> parameters.numClassesConfigured >> count;
        parameters.perClassPreclusterThreshold.resize(count);
        for (float& threshold : parameters.perClassPreclusterThreshold) {
            std::cin >> threshold;
        }
        const Layers layers = readLayers(1);
        std::vector<NvDsInferObjectDetectionInfo> objects;
        auto parse = reinterpret_cast<Parse>(dlsym(library, "NvDsInferParseEdgeRcnn"));
        std::cout << (parse(layers, {}, parameters, objects) ? "true" : "false") << "\n";
        for (const auto& object : objects) {
            std::cout << object.classId << " " << object.left << " " << object.top << " " << object.width << " "
                      << object.height << " " << object.detectionConfidence << "\n";
        }
        return 0;
    }
    const auto number = [&](int index) { return static_cast<unsigned>(std::atoi(argv[index])); };
    NvDsInferNetworkInfo network{};
    network.height = number(3);
    network.width = number(4);
    const Layers layers = readLayers(number(5));
    auto initialize = reinterpret_cast<Initialize>(dlsym(library, "NvDsInferInitializeInputLayers"));
    std::cout << (initialize(layers, network, number(5)) ? "true" : "false") << "\n";
    for (const auto& buffer : buffers) {
        for (const uint32_t bits : buffer) {
            float value = 0;
            std::memcpy(&value, &bits, 4);
            std::cout << value << " ";
        }
        std::cout << "\n";
    }
    return 0;
}
