// RpnProposals as a TensorRT plugin. See README.md for the op, common/plugin_base.h for what a plugin is made of.
//
// Inputs: im_info, L objectness maps, L bbox_deltas maps, all maps of one type and format. Outputs: rois, num_rois.
#include "common/check.h"
#include "common/plugin_base.h"
#include "rpn_proposals/kernel.h"

namespace edgercnn {
namespace {

constexpr int32_t kImInfo = 0, kMaps = 1;

class RpnProposalsPlugin {
public:
    static constexpr const char* kName = "RpnProposals";
    static constexpr int32_t kNumOutputs = 2;

    void attributes(Attributes& list) {
        list.numbers("base_anchors", op_.base_anchors, numCorners_, 4, {-1e6, 1e6});
        list.integers("strides", strides_, numStrides_, 2, {0, 65536});
        list.integer("pre_nms_top_n", op_.pre_nms_top_n, {1, kMostInteger}, {1000});
        list.integer("post_nms_top_n", op_.post_nms_top_n, {1, kMostInteger}, {1000});
        list.number("nms_threshold", op_.nms_threshold, kFraction, {0.7});
        list.number("score_threshold", op_.score_threshold, kFraction, {0});
        list.number("min_size", op_.min_size, {0, kMostFloat}, {1e-3});
        list.numbers("box_coder_weights", op_.box_coder_weights, kPositive, {1, 1, 1, 1});
        list.number("box_clip", op_.box_clip, kPositive, {kBoxClip});
    }

    const char* checkAttributes() {
        if (numStrides_ % 2 != 0) {
            return refuse("attribute strides has %d numbers, expected two, y and x, for each level", numStrides_);
        }
        op_.levels = numStrides_ / 2;
        op_.anchors = numCorners_ / (4 * op_.levels);
        if (numCorners_ != 4 * op_.levels * op_.anchors) {
            return refuse("attribute base_anchors has %d numbers, expected a multiple of 4 x %d levels (of strides)",
                          numCorners_, op_.levels);
        }
        for (int32_t level = 0; level < op_.levels; ++level) {
            op_.stride_y[level] = strides_[2 * level];
            op_.stride_x[level] = strides_[2 * level + 1];
            op_.height[level] = op_.width[level] = 1;
        }
        op_.batch = 1;
        return check();
    }

    int32_t numInputs() const { return kMaps + 2 * op_.levels; }

    bool supports(int32_t position, const TensorDesc* tensors) const {
        if (position == kImInfo || position == numInputs()) {
            return isLinear(tensors[position], DataType::kFLOAT);
        }
        if (position > numInputs()) {
            return isLinear(tensors[position], DataType::kINT32);
        }
        return isMap(tensors[position]) && isAlike(tensors[position], tensors[kMaps]);
    }

    const char* setShapes(const TensorDesc* tensors) {
        op_.batch = kUnknown;
        const char* problem = matchShape(tensors[kImInfo], "im_info", kUnknown, {op_.batch, 4});
        for (int32_t level = 0; level < op_.levels && problem == nullptr; ++level) {
            int32_t& height = op_.height[level] = kUnknown;
            int32_t& width = op_.width[level] = kUnknown;
            problem = matchShape(objectness(tensors)[level], "objectness", level,
                                 {op_.batch, op_.anchors, height, width});
            if (problem == nullptr) {
                problem = matchShape(deltas(tensors)[level], "bbox_deltas", level,
                                     {op_.batch, 4 * op_.anchors, height, width});
            }
        }
        const Memory memory = memoryOf(objectness(tensors)[0]);
        op_.type = memory.type;
        op_.layout = memory.layout;
        op_.objectness_pitch = memory.pitch;
        op_.deltas_pitch = memoryOf(deltas(tensors)[0]).pitch;
        return problem;
    }

    const char* check() const { return edgercnn_rpn_proposals_check(&op_); }

    DataType outputType(int32_t output, const DataType*) const {
        return output == 0 ? DataType::kFLOAT : DataType::kINT32;
    }

    void outputShapes(const DimsExprs* inputs, OutputShapes& shapes) const {
        const auto* batch = inputs[kImInfo].d[0];
        shapes.add({batch, shapes.constant(op_.post_nms_top_n), shapes.constant(4)});
        shapes.add({batch});
    }

    size_t workspace() const { return edgercnn_rpn_proposals_workspace(&op_); }

    int32_t launch(const void* const* inputs, void* const* outputs, void* workspace, void* stream) const {
        return edgercnn_rpn_proposals(&op_, static_cast<const float*>(inputs[kImInfo]), objectness(inputs),
                                      deltas(inputs), static_cast<float*>(outputs[0]),
                                      static_cast<int32_t*>(outputs[1]), workspace, stream);
    }

private:
    template <typename T>
    const T* objectness(const T* inputs) const {
        return inputs + kMaps;
    }
    template <typename T>
    const T* deltas(const T* inputs) const {
        return inputs + kMaps + op_.levels;
    }

    RpnProposals op_;
    int32_t strides_[2 * kMaxLevels];  // as the attribute has them, to be stored in a plan
    int32_t numStrides_, numCorners_;
};

}  // namespace

nvinfer1::IPluginCreatorInterface* rpnProposalsCreator() { return creatorOf<RpnProposalsPlugin>(); }

}  // namespace edgercnn
