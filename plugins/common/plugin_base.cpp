// The part of the plugins' common code that does not depend on the op.
#include "common/plugin_base.h"

#include <stdio.h>

#include <algorithm>

#include "common/check.h"

namespace edgercnn {

bool report(const char* op, const char* layer, const char* problem) {
    if (problem == nullptr) {
        return false;
    }
    const bool isNamed = layer != nullptr && layer[0] != '\0';
    fprintf(stderr, "edgercnn: %s%s%s: %s\n", op, isNamed ? " " : "", isNamed ? layer : "", problem);
    return true;
}

Tensors::Tensors(const TensorDesc* inputs, int32_t numInputs, const TensorDesc* outputs, int32_t numOutputs)
    : descs_{} {
    TensorDesc* next = std::copy_n(inputs, std::min(numInputs, kMaxTensors), descs_);
    std::copy_n(outputs, std::min<int64_t>(numOutputs, descs_ + kMaxTensors - next), next);
}

Tensors::Tensors(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t numInputs,
                 const nvinfer1::DynamicPluginTensorDesc* outputs, int32_t numOutputs)
    : descs_{} {
    for (int32_t index = 0; index < std::min(numInputs + numOutputs, kMaxTensors); ++index) {
        const auto& tensor = index < numInputs ? inputs[index] : outputs[index - numInputs];
        descs_[index] = tensor.desc;
        descs_[index].dims = tensor.max;
    }
}

Tensors::Tensors(const DimsExprs* inputs, int32_t numInputs) : descs_{} {
    for (int32_t index = 0; index < std::min(numInputs, kMaxTensors); ++index) {
        nvinfer1::Dims& dims = descs_[index].dims;
        dims.nbDims = inputs[index].nbDims;
        for (int32_t axis = 0; axis < dims.nbDims; ++axis) {
            const nvinfer1::IDimensionExpr* extent = inputs[index].d[axis];
            dims.d[axis] = extent->isConstant() ? extent->getConstantValue() : kUnknown;
        }
    }
}

const char* checkCounts(int32_t numInputs, int32_t expectedInputs, int32_t numOutputs, int32_t expectedOutputs) {
    if (numInputs == expectedInputs && numOutputs == expectedOutputs) {
        return nullptr;
    }
    return refuse("the node has %d inputs and %d outputs, its attributes ask for %d and %d", numInputs, numOutputs,
                  expectedInputs, expectedOutputs);
}

}  // namespace edgercnn
