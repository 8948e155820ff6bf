// STAND-IN, for tests only: as much of DeepStream's nvdsinfer_custom_impl.h and nvdsinfer.h as the parser uses, written
// after the documented interface. It is not NVIDIA's file. DEEPSTREAM_INCLUDE makes the tests use the SDK's own.
#pragma once

#include <vector>

enum NvDsInferDataType { FLOAT = 0, HALF = 1, INT8 = 2, INT32 = 3 };

struct NvDsInferDims {
    unsigned int numDims;
    unsigned int d[8];
    unsigned int numElements;  // of one image
};

struct NvDsInferLayerInfo {
    NvDsInferDataType dataType;
    NvDsInferDims inferDims;
    int bindingIndex;
    const char* layerName;
    void* buffer;
    int isInput;
};

struct NvDsInferNetworkInfo {
    unsigned int width;
    unsigned int height;
    unsigned int channels;
};

struct NvDsInferObjectDetectionInfo {
    unsigned int classId;
    float left;
    float top;
    float width;
    float height;
    float detectionConfidence;
    float rotation_angle;  // in newer SDKs
};

struct NvDsInferParseDetectionParams {
    unsigned int numClassesConfigured;
    std::vector<float> perClassPreclusterThreshold;
    std::vector<float> perClassPostclusterThreshold;
};

using NvDsInferParseCustomFunc = bool (*)(std::vector<NvDsInferLayerInfo> const&, NvDsInferNetworkInfo const&,
                                          NvDsInferParseDetectionParams const&,
                                          std::vector<NvDsInferObjectDetectionInfo>&);

// Fails to compile if the function has another type.
#define CHECK_CUSTOM_PARSE_FUNC_PROTOTYPE(function) \
    static_assert(static_cast<NvDsInferParseCustomFunc>(&function) != nullptr, "type of " #function)

extern "C" bool NvDsInferInitializeInputLayers(std::vector<NvDsInferLayerInfo> const& inputLayersInfo,
                                               NvDsInferNetworkInfo const& networkInfo, unsigned int maxBatchSize);
