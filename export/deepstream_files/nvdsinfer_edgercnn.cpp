// What DeepStream's nvinfer needs to run an EdgeRCNN detector: the objects in the network's four outputs, and values
// for its second input. Built by the Makefile beside it; nvinfer opens the library (custom-lib-path).
//
//   num_detections int32 [1], detection_boxes float32 [D, 4] xyxy, detection_scores float32 [D] from the best down,
//   detection_classes int32 [D]; rows from num_detections on are padding. Suppression was done in the network.
//
// Boxes come in network px, since im_info says scale 1: nvinfer scales them back to the frame itself.
// Interface: sources/includes/nvdsinfer_custom_impl.h of the DeepStream SDK.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include "nvdsinfer_custom_impl.h"
#include "nvdsinfer_edgercnn_model.h"

namespace {

using Layers = std::vector<NvDsInferLayerInfo>;

// The layer called `name` if it holds `type` and `count` values per image (0: any number); otherwise a line on stderr.
const NvDsInferLayerInfo* findLayer(const Layers& layers, const char* name, NvDsInferDataType type, unsigned count) {
    for (const NvDsInferLayerInfo& layer : layers) {
        if (layer.layerName == nullptr || std::strcmp(layer.layerName, name) != 0) {
            continue;
        }
        const unsigned found = layer.inferDims.numElements;
        if (layer.buffer == nullptr || layer.dataType != type || found == 0 || (count != 0 && found != count)) {
            std::fprintf(stderr,
                         "edgercnn: layer %s has data type %d and %u values per image, expected type %d and %u\n", name,
                         static_cast<int>(layer.dataType), found, static_cast<int>(type), count);
            return nullptr;
        }
        return &layer;
    }
    std::fprintf(stderr, "edgercnn: there is no layer %s: was the plan built from model.onnx of this folder?\n", name);
    return nullptr;
}

}  // namespace

extern "C" bool NvDsInferParseEdgeRcnn(std::vector<NvDsInferLayerInfo> const& outputLayersInfo,
                                       NvDsInferNetworkInfo const& /*networkInfo*/,
                                       NvDsInferParseDetectionParams const& detectionParams,
                                       std::vector<NvDsInferObjectDetectionInfo>& objectList) {
    const auto* scores = findLayer(outputLayersInfo, edgercnn::kDetectionScores, FLOAT, 0);
    if (scores == nullptr) {
        return false;
    }
    const unsigned rows = scores->inferDims.numElements;
    const auto* classes = findLayer(outputLayersInfo, edgercnn::kDetectionClasses, INT32, rows);
    const auto* boxes = findLayer(outputLayersInfo, edgercnn::kDetectionBoxes, FLOAT, 4 * rows);
    const auto* number = findLayer(outputLayersInfo, edgercnn::kNumDetections, INT32, 1);
    if (classes == nullptr || boxes == nullptr || number == nullptr) {
        return false;
    }
    const std::int32_t found = *static_cast<const std::int32_t*>(number->buffer);
    if (found < 0 || static_cast<unsigned>(found) > rows) {
        std::fprintf(stderr, "edgercnn: %s is %d, expected 0 to %u\n", edgercnn::kNumDetections, found, rows);
        return false;
    }
    for (std::int32_t row = 0; row < found; ++row) {
        const std::int32_t label = static_cast<const std::int32_t*>(classes->buffer)[row];
        const float score = static_cast<const float*>(scores->buffer)[row];
        const auto& thresholds = detectionParams.perClassPreclusterThreshold;
        if (label < 0 || static_cast<unsigned>(label) >= detectionParams.numClassesConfigured ||
            static_cast<std::size_t>(label) >= thresholds.size() || !(score >= thresholds[label])) {
            continue;
        }
        const float* box = static_cast<const float*>(boxes->buffer) + 4 * row;
        NvDsInferObjectDetectionInfo object{};  // newer SDKs have more fields: all zero
        object.classId = static_cast<unsigned>(label);
        object.left = box[0];
        object.top = box[1];
        object.width = box[2] - box[0];
        object.height = box[3] - box[1];
        object.detectionConfidence = score;
        objectList.push_back(object);
    }
    return true;
}

// Called once, before the first frame: im_info = (valid height, valid width, scale_y, scale_x) of every image.
extern "C" bool NvDsInferInitializeInputLayers(std::vector<NvDsInferLayerInfo> const& inputLayersInfo,
                                               NvDsInferNetworkInfo const& networkInfo, unsigned int maxBatchSize) {
    const auto* info = findLayer(inputLayersInfo, edgercnn::kImInfo, FLOAT, 4);
    if (info == nullptr) {
        return false;
    }
    if (edgercnn::kValidHeight > networkInfo.height || edgercnn::kValidWidth > networkInfo.width) {
        std::fprintf(stderr, "edgercnn: the network's input is %ux%u, but this library was made for %ux%u of it\n",
                     networkInfo.height, networkInfo.width, edgercnn::kValidHeight, edgercnn::kValidWidth);
        return false;
    }
    float* values = static_cast<float*>(info->buffer);
    for (unsigned image = 0; image < maxBatchSize; ++image, values += 4) {
        values[0] = static_cast<float>(edgercnn::kValidHeight);
        values[1] = static_cast<float>(edgercnn::kValidWidth);
        values[2] = values[3] = 1.0F;
    }
    return true;
}

CHECK_CUSTOM_PARSE_FUNC_PROTOTYPE(NvDsInferParseEdgeRcnn);
