// BoxDetections as a TensorRT plugin. See README.md for the op, common/plugin_base.h for what a plugin is made of.
//
// Inputs: rois, num_rois, class_logits, bbox_deltas, im_info. Outputs: num_detections and the detections' boxes, scores
// and classes.
#include "box_detections/kernel.h"

#include "common/plugin_base.h"

namespace edgercnn {
namespace {

enum Tensor : int32_t { kRois, kNumRois, kClassLogits, kBoxDeltas, kImInfo, kNumInputs };
enum Output : int32_t { kNumDetections, kBoxes, kScores, kClasses };

class BoxDetectionsPlugin {
public:
    static constexpr const char* kName = "BoxDetections";
    static constexpr int32_t kNumOutputs = 4;

    void attributes(Attributes& list) {
        list.number("score_threshold", op_.score_threshold, kFraction, {0.05});
        list.number("nms_threshold", op_.nms_threshold, kFraction, {0.5});
        list.integer("max_detections", op_.max_detections, {1, kMostInteger}, {100});
        list.number("min_size", op_.min_size, {0, kMostFloat}, {1e-2});
        list.numbers("box_coder_weights", op_.box_coder_weights, kPositive, {10, 10, 5, 5});
        list.number("box_clip", op_.box_clip, kPositive, {kBoxClip});
    }

    const char* checkAttributes() {
        op_.batch = op_.rois = op_.classes = 1;
        return check();
    }

    int32_t numInputs() const { return kNumInputs; }

    bool supports(int32_t position, const TensorDesc* tensors) const {
        const TensorDesc& tensor = tensors[position];
        switch (position) {
            case kClassLogits: return isFloat(tensor.type) && isLinear(tensor, tensor.type);
            case kBoxDeltas: return isAlike(tensor, tensors[kClassLogits]);
            case kNumRois:
            case kNumInputs + kNumDetections:
            case kNumInputs + kClasses: return isLinear(tensor, DataType::kINT32);
            default: return isLinear(tensor, DataType::kFLOAT);
        }
    }

    const char* setShapes(const TensorDesc* tensors) {
        op_.type = memoryOf(tensors[kClassLogits]).type;
        op_.batch = op_.rois = kUnknown;
        if (const char* problem = matchShape(tensors[kRois], "rois", kUnknown, {op_.batch, op_.rois, 4})) {
            return problem;
        }
        if (const char* problem = matchShape(tensors[kNumRois], "num_rois", kUnknown, {op_.batch})) {
            return problem;
        }
        if (const char* problem = matchShape(tensors[kImInfo], "im_info", kUnknown, {op_.batch, 4})) {
            return problem;
        }
        const bool isKnown = op_.batch != kUnknown && op_.rois != kUnknown;
        const int64_t rows = isKnown ? static_cast<int64_t>(op_.batch) * op_.rois : kUnknown;
        int32_t numLogits = kUnknown;
        if (const char* problem = matchShape(tensors[kClassLogits], "class_logits", kUnknown, {rows, numLogits})) {
            return problem;
        }
        op_.classes = numLogits == kUnknown ? kUnknown : numLogits - 1;
        op_.class_agnostic = tensors[kBoxDeltas].dims.nbDims == 2 && tensors[kBoxDeltas].dims.d[1] == 4;
        const int64_t numDeltas = op_.class_agnostic ? 4 : numLogits == kUnknown ? kUnknown : 4 * numLogits;
        return matchShape(tensors[kBoxDeltas], "bbox_deltas", kUnknown, {rows, numDeltas});
    }

    const char* check() const { return edgercnn_box_detections_check(&op_); }

    DataType outputType(int32_t output, const DataType*) const {
        return output == kBoxes || output == kScores ? DataType::kFLOAT : DataType::kINT32;
    }

    void outputShapes(const DimsExprs* inputs, OutputShapes& shapes) const {
        const auto* batch = inputs[kRois].d[0];
        const auto* rows = shapes.constant(op_.max_detections);
        shapes.add({batch, shapes.constant(1)});
        shapes.add({batch, rows, shapes.constant(4)});
        shapes.add({batch, rows});
        shapes.add({batch, rows});
    }

    size_t workspace() const { return edgercnn_box_detections_workspace(&op_); }

    int32_t launch(const void* const* inputs, void* const* outputs, void* workspace, void* stream) const {
        return edgercnn_box_detections(
            &op_, static_cast<const float*>(inputs[kRois]), static_cast<const int32_t*>(inputs[kNumRois]),
            inputs[kClassLogits], inputs[kBoxDeltas], static_cast<const float*>(inputs[kImInfo]),
            static_cast<int32_t*>(outputs[kNumDetections]), static_cast<float*>(outputs[kBoxes]),
            static_cast<float*>(outputs[kScores]), static_cast<int32_t*>(outputs[kClasses]), workspace, stream);
    }

private:
    BoxDetections op_;
};

}  // namespace

nvinfer1::IPluginCreatorInterface* boxDetectionsCreator() { return creatorOf<BoxDetectionsPlugin>(); }

}  // namespace edgercnn
