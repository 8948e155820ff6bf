// A C face of a plugin library for ctypes (plugin_driver.py): it calls plugins as TensorRT does, through TensorRT's own
// interfaces, and stands in for what TensorRT hands them. No TensorRT library is needed. PluginField, Dims and
// PluginTensorDesc are mirrored in Python and passed as they are.
#include <NvInferRuntime.h>
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include <memory>
#include <vector>

#define DRIVER extern "C" __attribute__((visibility("default")))

using namespace nvinfer1;

namespace {

// A dimension with a value, which only says so when it is constant: as when a network's inputs are dynamic.
class Dimension final : public IDimensionExpr, private apiv::VDimensionExpr {
public:
    Dimension(int64_t value, bool isConstant) : value(value), constant(isConstant) { mImpl = this; }
    bool isConstant() const override { return constant; }
    int64_t getConstantValue() const override { return constant ? value : INT64_MIN; }
    bool isSizeTensor() const override { return false; }

    const int64_t value;
    const bool constant;
};

class Builder final : public IExprBuilder, private apiv::VExprBuilder {
public:
    Builder() { mImpl = this; }
    const IDimensionExpr* make(int64_t value, bool isConstant) {
        made_.push_back(std::make_unique<Dimension>(value, isConstant));
        return made_.back().get();
    }
    const IDimensionExpr* constant(int64_t value) override { return make(value, true); }
    const IDimensionExpr* operation(DimensionOperation operation, const IDimensionExpr& first,
                                    const IDimensionExpr& second) override {
        if (operation != DimensionOperation::kPROD) return nullptr;
        const auto& a = static_cast<const Dimension&>(first);
        const auto& b = static_cast<const Dimension&>(second);
        return make(a.value * b.value, a.constant && b.constant);
    }
    const IDimensionExpr* declareSizeTensor(int32_t, const IDimensionExpr&, const IDimensionExpr&) override {
        return nullptr;
    }

private:
    std::vector<std::unique_ptr<Dimension>> made_;
};

template <typename T>
T* capability(IPluginV3* plugin, PluginCapabilityType type) {
    return static_cast<T*>(plugin->getCapabilityInterface(type));
}
auto* core(IPluginV3* plugin) { return capability<IPluginV3OneCore>(plugin, PluginCapabilityType::kCORE); }
auto* build(IPluginV3* plugin) { return capability<IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD); }
auto* runtime(IPluginV3* plugin) { return capability<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME); }

// What TensorRT shows before a network runs: the axes that `isDynamic` leaves open are -1 in `desc`.
std::vector<DynamicPluginTensorDesc> profile(const PluginTensorDesc* tensors, int32_t count) {
    std::vector<DynamicPluginTensorDesc> result(count);
    for (int32_t index = 0; index < count; ++index) {
        auto& tensor = result[index];
        tensor.desc = tensors[index];
        tensor.min = tensor.opt = tensor.max = tensors[index].dims;
        for (int32_t axis = 0; axis < tensor.desc.dims.nbDims; ++axis) {
            tensor.desc.dims.d[axis] = -1;
            tensor.min.d[axis] = tensor.opt.d[axis] = 1;
        }
    }
    return result;
}

}  // namespace

DRIVER int32_t driver_version() { return NV_TENSORRT_MAJOR * 10000 + NV_TENSORRT_MINOR * 100 + NV_TENSORRT_PATCH; }

// The creators of the library at `path`, as IPluginRegistry::loadLibrary asks for them; null when it does not load.
DRIVER IPluginCreatorInterface* const* driver_open(const char* path, int32_t* count) {
    void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
        fprintf(stderr, "%s\n", dlerror());
        return nullptr;
    }
    reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(library, "setLoggerFinder"))(nullptr);
    using GetCreators = IPluginCreatorInterface* const* (*)(int32_t&);
    return reinterpret_cast<GetCreators>(dlsym(library, "getCreators"))(*count);
}

DRIVER IPluginCreatorV3One* driver_creator(IPluginCreatorInterface* const* creators, int32_t index) {
    const bool isV3 = strcmp(creators[index]->getInterfaceInfo().kind, "PLUGIN CREATOR_V3ONE") == 0;
    return isV3 ? static_cast<IPluginCreatorV3One*>(creators[index]) : nullptr;
}
DRIVER const char* driver_creator_name(IPluginCreatorV3One* creator) { return creator->getPluginName(); }
DRIVER const char* driver_creator_version(IPluginCreatorV3One* creator) { return creator->getPluginVersion(); }
DRIVER const char* driver_creator_namespace(IPluginCreatorV3One* creator) { return creator->getPluginNamespace(); }
DRIVER const PluginFieldCollection* driver_fields(IPluginCreatorV3One* creator) { return creator->getFieldNames(); }

DRIVER IPluginV3* driver_create(IPluginCreatorV3One* creator, const char* layer, const PluginFieldCollection* fields,
                                int32_t phase) {
    return creator->createPlugin(layer, fields, static_cast<TensorRTPhase>(phase));
}

DRIVER const char* driver_name(IPluginV3* plugin) { return core(plugin)->getPluginName(); }
DRIVER const char* driver_plugin_version(IPluginV3* plugin) { return core(plugin)->getPluginVersion(); }
DRIVER const char* driver_namespace(IPluginV3* plugin) { return core(plugin)->getPluginNamespace(); }
DRIVER int32_t driver_num_outputs(IPluginV3* plugin) { return build(plugin)->getNbOutputs(); }
DRIVER const PluginFieldCollection* driver_serialized(IPluginV3* plugin) {
    return runtime(plugin)->getFieldsToSerialize();
}
DRIVER IPluginV3* driver_clone(IPluginV3* plugin) { return plugin->clone(); }
DRIVER IPluginV3* driver_attach(IPluginV3* plugin) { return runtime(plugin)->attachToContext(nullptr); }
DRIVER void driver_delete(IPluginV3* plugin) { delete plugin; }

DRIVER int32_t driver_output_types(IPluginV3* plugin, const DataType* inputs, int32_t numInputs, DataType* outputs,
                                   int32_t numOutputs) {
    return build(plugin)->getOutputDataTypes(outputs, numOutputs, inputs, numInputs);
}

// The values of the outputs' dimensions; with `isConstant` 0 the plugin does not see the inputs' values.
DRIVER int32_t driver_output_shapes(IPluginV3* plugin, const Dims* inputs, int32_t numInputs, int32_t isConstant,
                                    Dims* outputs, int32_t numOutputs) {
    Builder builder;
    std::vector<DimsExprs> given(numInputs), made(numOutputs);
    for (int32_t index = 0; index < numInputs; ++index) {
        given[index].nbDims = inputs[index].nbDims;
        for (int32_t axis = 0; axis < inputs[index].nbDims; ++axis) {
            given[index].d[axis] = builder.make(inputs[index].d[axis], isConstant != 0);
        }
    }
    const int32_t status =
        build(plugin)->getOutputShapes(given.data(), numInputs, nullptr, 0, made.data(), numOutputs, builder);
    for (int32_t index = 0; index < numOutputs && status == 0; ++index) {
        outputs[index].nbDims = made[index].nbDims;
        for (int32_t axis = 0; axis < made[index].nbDims; ++axis) {
            outputs[index].d[axis] = static_cast<const Dimension*>(made[index].d[axis])->value;
        }
    }
    return status;
}

// Whether the plugin takes tensors[position]; those after it are not to be looked at.
DRIVER int32_t driver_supports(IPluginV3* plugin, int32_t position, const PluginTensorDesc* tensors, int32_t numInputs,
                               int32_t numOutputs) {
    return build(plugin)->supportsFormatCombination(position, profile(tensors, position + 1).data(), numInputs,
                                                    numOutputs);
}

DRIVER int64_t driver_workspace(IPluginV3* plugin, const PluginTensorDesc* inputs, int32_t numInputs,
                                const PluginTensorDesc* outputs, int32_t numOutputs) {
    const auto in = profile(inputs, numInputs), out = profile(outputs, numOutputs);
    if (build(plugin)->configurePlugin(in.data(), numInputs, out.data(), numOutputs) != 0) return -1;
    return static_cast<int64_t>(build(plugin)->getWorkspaceSize(in.data(), numInputs, out.data(), numOutputs));
}

DRIVER int32_t driver_shape_change(IPluginV3* plugin, const PluginTensorDesc* inputs, int32_t numInputs,
                                   const PluginTensorDesc* outputs, int32_t numOutputs) {
    return runtime(plugin)->onShapeChange(inputs, numInputs, outputs, numOutputs);
}

DRIVER int32_t driver_enqueue(IPluginV3* plugin, const PluginTensorDesc* inputDescs,
                              const PluginTensorDesc* outputDescs, const void* const* inputs, void* const* outputs,
                              void* workspace) {
    return runtime(plugin)->enqueue(inputDescs, outputDescs, inputs, outputs, workspace, nullptr);
}
