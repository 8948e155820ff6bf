// RoiMaxPool as a TensorRT plugin. See README.md for the op, common/plugin_base.h for what a plugin is made of.
//
// Inputs: rois, features. Output: pooled, of the features' type; linear, or as the features lie.
#include "roi_max_pool/kernel.h"

#include "common/plugin_base.h"

namespace edgercnn {
namespace {

enum Tensor : int32_t { kRois, kFeatures, kPooled };

class RoiMaxPoolPlugin {
public:
    static constexpr const char* kName = "RoiMaxPool";
    static constexpr int32_t kNumOutputs = 1;

    void attributes(Attributes& list) {
        list.integer("output_size", op_.output_size, {1, kMostInteger});
        list.number("spatial_scale", op_.spatial_scale, kPositive);
    }

    const char* checkAttributes() {
        op_.batch = op_.rois = op_.channels = op_.height = op_.width = 1;
        return check();
    }

    int32_t numInputs() const { return kPooled; }

    bool supports(int32_t position, const TensorDesc* tensors) const {
        const TensorDesc& tensor = tensors[position];
        switch (position) {
            case kRois: return isLinear(tensor, DataType::kFLOAT);
            case kFeatures: return isMap(tensor);
            default: return isLinear(tensor, tensors[kFeatures].type) || isAlike(tensor, tensors[kFeatures]);
        }
    }

    const char* setShapes(const TensorDesc* tensors) {
        const Memory features = memoryOf(tensors[kFeatures]);
        const Memory pooled = memoryOf(tensors[kPooled]);
        op_.type = features.type;
        op_.layout = features.layout;
        op_.pitch = features.pitch;
        op_.output_layout = pooled.layout;
        op_.output_pitch = pooled.pitch;
        op_.batch = op_.rois = op_.channels = op_.height = op_.width = kUnknown;
        const char* problem = matchShape(tensors[kRois], "rois", kUnknown, {op_.batch, op_.rois, 4});
        return problem != nullptr ? problem
                                  : matchShape(tensors[kFeatures], "features", kUnknown,
                                               {op_.batch, op_.channels, op_.height, op_.width});
    }

    const char* check() const { return edgercnn_roi_max_pool_check(&op_); }

    DataType outputType(int32_t, const DataType* inputs) const { return inputs[kFeatures]; }

    void outputShapes(const DimsExprs* inputs, OutputShapes& shapes) const {
        const auto* side = shapes.constant(op_.output_size);
        shapes.add({shapes.product(inputs[kRois].d[0], inputs[kRois].d[1]), inputs[kFeatures].d[1], side, side});
    }

    size_t workspace() const { return edgercnn_roi_max_pool_workspace(&op_); }

    int32_t launch(const void* const* inputs, void* const* outputs, void* workspace, void* stream) const {
        return edgercnn_roi_max_pool(&op_, static_cast<const float*>(inputs[kRois]), inputs[kFeatures], outputs[0],
                                     workspace, stream);
    }

private:
    RoiMaxPool op_;
};

}  // namespace

nvinfer1::IPluginCreatorInterface* roiMaxPoolCreator() { return creatorOf<RoiMaxPoolPlugin>(); }

}  // namespace edgercnn
