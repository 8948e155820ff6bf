// What a plugin asks of the tensors that TensorRT gives it: shapes, types, and how they lie in memory.
//
// Maps ([B, C, H, W] with channels to choose from) may be FP32 in kLINEAR or kHWC, or FP16 in kLINEAR, kHWC8 or kHWC16.
// All else is kLINEAR; coordinates are FP32 and counts INT32 always.
#pragma once

#include <NvInferRuntime.h>

#include <initializer_list>

#include "common/abi.h"

namespace edgercnn {

constexpr int32_t kUnknown = -1;

// One axis of an expected shape: a number, or a variable, which the first axis met gives its value and which later ones
// must equal. kUnknown extents, which TensorRT has before a network's inputs are known, fit anywhere.
struct Axis {
    Axis(int32_t& variable) : variable(&variable), number(kUnknown) {}  // NOLINT: { batch, 4 } reads well
    Axis(int64_t number) : variable(nullptr), number(number) {}         // NOLINT

    int32_t* variable;
    int64_t number;
};

// Null, or the sentence that says how the shape of `tensor` differs. `level` is appended to `name` unless negative.
const char* matchShape(const nvinfer1::PluginTensorDesc& tensor, const char* name, int32_t level,
                       std::initializer_list<Axis> shape);

// How a map or a table lies in memory, in abi.h's words.
struct Memory {
    int32_t type, layout, pitch;
};

Memory memoryOf(const nvinfer1::PluginTensorDesc& tensor);

// For supportsFormatCombination.
bool isFloat(nvinfer1::DataType type);  // FP32 or FP16
bool isLinear(const nvinfer1::PluginTensorDesc& tensor, nvinfer1::DataType type);
bool isMap(const nvinfer1::PluginTensorDesc& tensor);
bool isAlike(const nvinfer1::PluginTensorDesc& tensor, const nvinfer1::PluginTensorDesc& other);

// Writes the shapes of a plugin's outputs.
class OutputShapes {
public:
    OutputShapes(nvinfer1::DimsExprs* outputs, nvinfer1::IExprBuilder& builder)
        : outputs_(outputs), builder_(builder) {}

    const nvinfer1::IDimensionExpr* constant(int64_t value) { return builder_.constant(value); }
    const nvinfer1::IDimensionExpr* product(const nvinfer1::IDimensionExpr* a, const nvinfer1::IDimensionExpr* b) {
        return builder_.operation(nvinfer1::DimensionOperation::kPROD, *a, *b);
    }
    void add(std::initializer_list<const nvinfer1::IDimensionExpr*> shape);

private:
    nvinfer1::DimsExprs* outputs_;  // the next one to write
    nvinfer1::IExprBuilder& builder_;
};

}  // namespace edgercnn
