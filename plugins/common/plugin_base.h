// The part of a TensorRT plugin that is the same for all ops. An op is a plain class with
//
//     static constexpr const char* kName;
//     static constexpr int32_t kNumOutputs;
//     void attributes(Attributes& list);                  its attributes, see plugin_fields.h
//     const char* checkAttributes();                      null, or what the kernels refuse whatever the shapes are
//     int32_t numInputs() const;
//     bool supports(int32_t position, const TensorDesc* tensors) const;    type and format of tensors[position]
//     const char* setShapes(const TensorDesc* tensors);   takes over shapes and formats; null when they fit
//     const char* check() const;                          null, or what the kernels refuse
//     DataType outputType(int32_t output, const DataType* inputs) const;
//     void outputShapes(const DimsExprs* inputs, OutputShapes& shapes) const;
//     size_t workspace() const;
//     int32_t launch(const void* const* inputs, void* const* outputs, void* workspace, void* stream) const;
//
// where `tensors` are the inputs and then the outputs. Plugin<Op> makes an IPluginV3 of it, creatorOf<Op>() its
// creator. One source serves TensorRT 10.0 to 11: it uses what NvInferRuntime.h has in all of them, and never ILogger,
// whose layout changed in 11.0. What goes wrong is said on stderr in one sentence. Nothing throws, and no CUDA function
// is called before `enqueue`, so that plugins can be registered, created and parsed on a machine without a GPU.
#pragma once

#include <NvInferRuntime.h>

#include <new>

#include "common/plugin_fields.h"
#include "common/plugin_tensors.h"

namespace edgercnn {

using nvinfer1::DataType;
using nvinfer1::DimsExprs;
using TensorDesc = nvinfer1::PluginTensorDesc;

constexpr const char* kPluginVersion = "1";
constexpr const char* kPluginNamespace = "";
constexpr int32_t kMaxTensors = 2 * kMaxLevels + 4;  // of one plugin, inputs and outputs

// Says `problem` on stderr; false when there is none, that is when it is null.
bool report(const char* op, const char* layer, const char* problem);

// A plugin's inputs and then its outputs; those not given are FP32 without a shape.
class Tensors {
public:
    Tensors() : descs_{} {}
    Tensors(const TensorDesc* inputs, int32_t numInputs, const TensorDesc* outputs, int32_t numOutputs);
    // The largest that an optimization profile allows.
    Tensors(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t numInputs,
            const nvinfer1::DynamicPluginTensorDesc* outputs, int32_t numOutputs);
    // As far as they are known when a network is defined.
    Tensors(const DimsExprs* inputs, int32_t numInputs);

    const TensorDesc* descs() const { return descs_; }

private:
    TensorDesc descs_[kMaxTensors];
};

// Null, or the sentence for a wrong number of inputs or outputs.
const char* checkCounts(int32_t numInputs, int32_t expectedInputs, int32_t numOutputs, int32_t expectedOutputs);

template <typename Op>
class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuild,
                     public nvinfer1::IPluginV3OneRuntime {
    using DynamicTensorDesc = nvinfer1::DynamicPluginTensorDesc;

public:
    explicit Plugin(const Op& op) : op_(op) {}

    nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override {
        switch (type) {
            case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
            case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
            case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
        }
        return nullptr;
    }
    nvinfer1::IPluginV3* clone() noexcept override { return new (std::nothrow) Plugin(op_); }

    const char* getPluginName() const noexcept override { return Op::kName; }
    const char* getPluginVersion() const noexcept override { return kPluginVersion; }
    const char* getPluginNamespace() const noexcept override { return kPluginNamespace; }

    // When an engine is built.

    int32_t getNbOutputs() const noexcept override { return Op::kNumOutputs; }

    int32_t getOutputDataTypes(DataType* types, int32_t numOutputs, const DataType* inputTypes,
                               int32_t numInputs) const noexcept override {
        if (isReported(checkCounts(numInputs, op_.numInputs(), numOutputs, Op::kNumOutputs))) {
            return kInvalidArgument;
        }
        for (int32_t output = 0; output < numOutputs; ++output) {
            types[output] = op_.outputType(output, inputTypes);
        }
        return kSuccess;
    }

    int32_t getOutputShapes(const DimsExprs* inputs, int32_t numInputs, const DimsExprs*, int32_t, DimsExprs* outputs,
                            int32_t numOutputs, nvinfer1::IExprBuilder& builder) noexcept override {
        if (isReported(checkCounts(numInputs, op_.numInputs(), numOutputs, Op::kNumOutputs)) ||
            isReported(Op(op_).setShapes(Tensors(inputs, numInputs).descs()))) {
            return kInvalidArgument;
        }
        OutputShapes shapes(outputs, builder);
        op_.outputShapes(inputs, shapes);
        return kSuccess;
    }

    bool supportsFormatCombination(int32_t position, const DynamicTensorDesc* tensors, int32_t numInputs,
                                   int32_t numOutputs) noexcept override {
        if (checkCounts(numInputs, op_.numInputs(), numOutputs, Op::kNumOutputs) != nullptr) {
            return false;
        }
        TensorDesc descs[kMaxTensors];
        for (int32_t index = 0; index <= position; ++index) {
            descs[index] = tensors[index].desc;
        }
        return op_.supports(position, descs);
    }

    int32_t configurePlugin(const DynamicTensorDesc* inputs, int32_t numInputs, const DynamicTensorDesc* outputs,
                            int32_t numOutputs) noexcept override {
        Op largest = op_;
        return isReported(take(largest, Tensors(inputs, numInputs, outputs, numOutputs))) ? kInvalidArgument : kSuccess;
    }

    size_t getWorkspaceSize(const DynamicTensorDesc* inputs, int32_t numInputs, const DynamicTensorDesc* outputs,
                            int32_t numOutputs) const noexcept override {
        Op largest = op_;
        return isReported(take(largest, Tensors(inputs, numInputs, outputs, numOutputs))) ? 0 : largest.workspace();
    }

    // When it runs.

    int32_t onShapeChange(const TensorDesc* inputs, int32_t numInputs, const TensorDesc* outputs,
                          int32_t numOutputs) noexcept override {
        return isReported(take(op_, Tensors(inputs, numInputs, outputs, numOutputs))) ? kInvalidArgument : kSuccess;
    }

    int32_t enqueue(const TensorDesc* inputDescs, const TensorDesc* outputDescs, const void* const* inputs,
                    void* const* outputs, void* workspace, cudaStream_t stream) noexcept override {
        if (isReported(op_.setShapes(Tensors(inputDescs, op_.numInputs(), outputDescs, Op::kNumOutputs).descs()))) {
            return kInvalidArgument;
        }
        const int32_t status = op_.launch(inputs, outputs, workspace, stream);
        if (status == kInvalidArgument) {
            const char* refusal = op_.check();
            isReported(refusal ? refusal : "a tensor or the workspace is a null pointer, expected device memory");
        } else if (status != kSuccess) {
            isReported(edgercnn_status_string(status));
        }
        return status;
    }

    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override { return clone(); }

    const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override {
        fields_ = FieldWriter(FieldWriter::kValues);
        op_.attributes(fields_);
        return fields_.fields();
    }

private:
    static bool isReported(const char* problem) { return report(Op::kName, nullptr, problem); }

    static const char* take(Op& op, const Tensors& tensors) {
        const char* problem = op.setShapes(tensors.descs());
        return problem != nullptr ? problem : op.check();
    }

    Op op_;
    FieldWriter fields_{FieldWriter::kValues};
};

template <typename Op>
class Creator final : public nvinfer1::IPluginCreatorV3One {
public:
    Creator() { defaults_.attributes(fields_); }

    nvinfer1::IPluginV3* createPlugin(const char* layer, const nvinfer1::PluginFieldCollection* fields,
                                      nvinfer1::TensorRTPhase) noexcept override {
        Op op{};
        FieldReader reader(fields);
        op.attributes(reader);
        const char* problem = reader.problem();
        if (report(Op::kName, layer, problem != nullptr ? problem : op.checkAttributes())) {
            return nullptr;
        }
        return new (std::nothrow) Plugin<Op>(op);
    }

    const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return fields_.fields(); }
    const char* getPluginName() const noexcept override { return Op::kName; }
    const char* getPluginVersion() const noexcept override { return kPluginVersion; }
    const char* getPluginNamespace() const noexcept override { return kPluginNamespace; }

private:
    Op defaults_{};
    FieldWriter fields_{FieldWriter::kDefaults};
};

// The one creator of Op; never destroyed, because TensorRT's registry may outlive this library's static objects.
template <typename Op>
nvinfer1::IPluginCreatorInterface* creatorOf() {
    alignas(Creator<Op>) static unsigned char memory[sizeof(Creator<Op>)];
    static auto* const creator = new (memory) Creator<Op>;
    return creator;
}

}  // namespace edgercnn
