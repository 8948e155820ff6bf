// Shapes, types and formats of plugin tensors.
#include "common/plugin_tensors.h"

#include "common/check.h"

namespace edgercnn {

using nvinfer1::DataType;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorFormat;

namespace {

// Appends "[2, 3, ...]", -1 as "any", to the `size` characters at `text`.
template <typename NumberAt>
void writeShape(char* text, size_t size, int32_t rank, NumberAt numberAt) {
    size_t used = static_cast<size_t>(snprintf(text, size, "["));
    for (int32_t axis = 0; axis < rank && used < size; ++axis) {
        const auto number = static_cast<long long>(numberAt(axis));
        const char* comma = axis == 0 ? "" : ", ";
        used += static_cast<size_t>(number == kUnknown ? snprintf(text + used, size - used, "%sany", comma)
                                                       : snprintf(text + used, size - used, "%s%lld", comma, number));
    }
    if (used < size) {
        snprintf(text + used, size - used, "]");
    }
}

bool matches(int64_t extent, const Axis& axis) {
    const int64_t wanted = axis.variable == nullptr ? axis.number : *axis.variable;
    return extent == kUnknown || extent == wanted || (wanted == kUnknown && extent >= 0 && extent <= INT32_MAX);
}

}  // namespace

const char* matchShape(const PluginTensorDesc& tensor, const char* name, int32_t level,
                       std::initializer_list<Axis> shape) {
    const nvinfer1::Dims& dims = tensor.dims;
    const Axis* axes = shape.begin();
    const auto rank = static_cast<int32_t>(shape.size());
    bool good = dims.nbDims == rank;
    for (int32_t axis = 0; good && axis < rank; ++axis) {
        good = matches(dims.d[axis], axes[axis]);
    }
    if (!good) {
        char given[96], wanted[96], suffix[16] = "";
        writeShape(given, sizeof(given), dims.nbDims, [&](int32_t axis) { return dims.d[axis]; });
        writeShape(wanted, sizeof(wanted), rank, [&](int32_t axis) {
            return axes[axis].variable == nullptr ? axes[axis].number : *axes[axis].variable;
        });
        if (level >= 0) {
            snprintf(suffix, sizeof(suffix), "_%d", level);
        }
        return refuse("input %s%s has shape %s, expected %s", name, suffix, given, wanted);
    }
    for (int32_t axis = 0; axis < rank; ++axis) {
        if (axes[axis].variable != nullptr && dims.d[axis] != kUnknown) {
            *axes[axis].variable = static_cast<int32_t>(dims.d[axis]);
        }
    }
    return nullptr;
}

Memory memoryOf(const PluginTensorDesc& tensor) {
    const auto channels = static_cast<int32_t>(tensor.dims.nbDims < 2 ? 0 : tensor.dims.d[1]);
    const auto roundedUp = [&](int32_t multiple) { return (channels + multiple - 1) / multiple * multiple; };
    const int32_t type = tensor.type == DataType::kHALF ? kFloat16 : kFloat32;
    switch (tensor.format) {
        case TensorFormat::kHWC: return {type, kNHWC, channels};
        case TensorFormat::kHWC8: return {type, kNHWC, roundedUp(8)};
        case TensorFormat::kHWC16: return {type, kNHWC, roundedUp(16)};
        default: return {type, kNCHW, channels};
    }
}

bool isFloat(DataType type) { return type == DataType::kFLOAT || type == DataType::kHALF; }

bool isLinear(const PluginTensorDesc& tensor, DataType type) {
    return tensor.type == type && tensor.format == TensorFormat::kLINEAR;
}

bool isMap(const PluginTensorDesc& tensor) {
    switch (tensor.format) {
        case TensorFormat::kLINEAR: return isFloat(tensor.type);
        case TensorFormat::kHWC: return tensor.type == DataType::kFLOAT;
        case TensorFormat::kHWC8:
        case TensorFormat::kHWC16: return tensor.type == DataType::kHALF;
        default: return false;
    }
}

bool isAlike(const PluginTensorDesc& tensor, const PluginTensorDesc& other) {
    return tensor.type == other.type && tensor.format == other.format;
}

void OutputShapes::add(std::initializer_list<const nvinfer1::IDimensionExpr*> shape) {
    outputs_->nbDims = static_cast<int32_t>(shape.size());
    for (const nvinfer1::IDimensionExpr* const& extent : shape) {
        outputs_->d[&extent - shape.begin()] = extent;
    }
    ++outputs_;
}

}  // namespace edgercnn
