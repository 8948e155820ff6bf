// PyramidRoiAlign as a TensorRT plugin. See README.md for the op, common/plugin_base.h for what a plugin is made of.
//
// Inputs: rois, L features of one type and format. Output: pooled, of the features' type; linear, or as the features
// lie.
#include "pyramid_roi_align/kernel.h"

#include "common/plugin_base.h"

namespace edgercnn {
namespace {

constexpr int32_t kRois = 0, kFeatures = 1;

class PyramidRoiAlignPlugin {
public:
    static constexpr const char* kName = "PyramidRoiAlign";
    static constexpr int32_t kNumOutputs = 1;

    void attributes(Attributes& list) {
        list.numbers("spatial_scales", op_.spatial_scale, op_.levels, 1, kPositive);
        list.integer("output_size", op_.output_size, {1, kMostInteger});
        list.integer("sampling_ratio", op_.sampling_ratio, {0, kMostInteger}, {2});
        list.integer("aligned", op_.aligned, {0, 1}, {0});
        list.number("canonical_scale", op_.canonical_scale, kPositive, {224});
        list.integer("canonical_level", op_.canonical_level, {0, 30}, {4});
    }

    const char* checkAttributes() {
        op_.batch = op_.rois = op_.channels = 1;
        for (int32_t level = 0; level < op_.levels; ++level) {
            op_.height[level] = op_.width[level] = 1;
        }
        return check();
    }

    int32_t numInputs() const { return kFeatures + op_.levels; }

    bool supports(int32_t position, const TensorDesc* tensors) const {
        const TensorDesc& tensor = tensors[position];
        if (position == kRois) {
            return isLinear(tensor, DataType::kFLOAT);
        }
        if (position == numInputs() && isLinear(tensor, tensors[kFeatures].type)) {
            return true;
        }
        return isMap(tensor) && isAlike(tensor, tensors[kFeatures]);
    }

    const char* setShapes(const TensorDesc* tensors) {
        op_.batch = op_.rois = op_.channels = kUnknown;
        const char* problem = matchShape(tensors[kRois], "rois", kUnknown, {op_.batch, op_.rois, 4});
        for (int32_t level = 0; level < op_.levels && problem == nullptr; ++level) {
            int32_t& height = op_.height[level] = kUnknown;
            int32_t& width = op_.width[level] = kUnknown;
            problem = matchShape(tensors[kFeatures + level], "features", level,
                                 {op_.batch, op_.channels, height, width});
        }
        const Memory features = memoryOf(tensors[kFeatures]);
        const Memory pooled = memoryOf(tensors[numInputs()]);
        op_.type = features.type;
        op_.layout = features.layout;
        op_.pitch = features.pitch;
        op_.output_layout = pooled.layout;
        op_.output_pitch = pooled.pitch;
        return problem;
    }

    const char* check() const { return edgercnn_pyramid_roi_align_check(&op_); }

    DataType outputType(int32_t, const DataType* inputs) const { return inputs[kFeatures]; }

    void outputShapes(const DimsExprs* inputs, OutputShapes& shapes) const {
        const auto* side = shapes.constant(op_.output_size);
        shapes.add({shapes.product(inputs[kRois].d[0], inputs[kRois].d[1]), inputs[kFeatures].d[1], side, side});
    }

    size_t workspace() const { return edgercnn_pyramid_roi_align_workspace(&op_); }

    int32_t launch(const void* const* inputs, void* const* outputs, void* workspace, void* stream) const {
        return edgercnn_pyramid_roi_align(&op_, static_cast<const float*>(inputs[kRois]), inputs + kFeatures,
                                          outputs[0], workspace, stream);
    }

private:
    PyramidRoiAlign op_;
};

}  // namespace

nvinfer1::IPluginCreatorInterface* pyramidRoiAlignCreator() { return creatorOf<PyramidRoiAlignPlugin>(); }

}  // namespace edgercnn
