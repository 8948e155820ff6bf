// How TensorRT finds the plugins. There are two ways to load a plugin library, and it must serve both:
//
//   - TensorRT loads it: IPluginRegistry::loadLibrary, trtexec --dynamicPlugins, the plugin libraries of a
//     version-compatible plan. TensorRT then calls getCreators and registers what it is given.
//   - Someone else opens it: trtexec --staticPlugins, DeepStream's custom-lib-path, Triton's plugins=, ctypes.CDLL,
//     LD_PRELOAD. Nobody calls getCreators, so the library registers itself when it is loaded.
//
// Both at once would clash: loadLibrary refuses a library whose creators are registered already, and unloads it with
// the registry still pointing into it. So the library looks who is opening it: with TensorRT itself among the callers
// it leaves the registering to TensorRT. TensorRT is not linked but looked up among the libraries that are loaded, so
// the library loads without it, and one in the process is never joined by another.
#include <NvInferRuntime.h>
#include <dlfcn.h>
#include <execinfo.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <iterator>

#define EDGERCNN_STRING_OF(text) #text
#define EDGERCNN_STRING(number) EDGERCNN_STRING_OF(number)
#define EDGERCNN_MAJOR EDGERCNN_STRING(NV_TENSORRT_MAJOR)
#define EDGERCNN_EXPORT extern "C" __attribute__((visibility("default")))

namespace edgercnn {

nvinfer1::IPluginCreatorInterface* rpnProposalsCreator();
nvinfer1::IPluginCreatorInterface* pyramidRoiAlignCreator();
nvinfer1::IPluginCreatorInterface* roiMaxPoolCreator();
nvinfer1::IPluginCreatorInterface* boxDetectionsCreator();

namespace {

constexpr int32_t kNumCreators = 4;
using GetRegistry = decltype(&getPluginRegistry);

nvinfer1::IPluginCreatorInterface* const* creators() {
    static nvinfer1::IPluginCreatorInterface* const all[kNumCreators] = {
        rpnProposalsCreator(), pyramidRoiAlignCreator(), roiMaxPoolCreator(), boxDetectionsCreator()};
    return all;
}

// The file that the code or data at `address` was loaded from, or null.
const char* fileOf(const void* address) {
    Dl_info info;
    return dladdr(address, &info) != 0 ? info.dli_fname : nullptr;
}

// Whether code of the library that `function` is in waits for this one to return.
bool isAmongCallers(GetRegistry function) {
    const char* file = function == nullptr ? nullptr : fileOf(reinterpret_cast<const void*>(function));
    void* frames[256];
    const int numFrames = backtrace(frames, 256);
    for (int index = 0; index < numFrames; ++index) {
        const char* caller = fileOf(frames[index]);
        if (file != nullptr && caller != nullptr && strcmp(caller, file) == 0) {
            return true;
        }
    }
    return false;
}

// LD_PRELOAD loads this library before all others, TensorRT among them, which a preloaded library must then bring
// along, as one linked with TensorRT does.
bool isPreloaded(const char* ownFile) {
    const char* preloaded = getenv("LD_PRELOAD");
    const char* slash = strrchr(ownFile, '/');
    return preloaded != nullptr && strstr(preloaded, slash == nullptr ? ownFile : slash + 1) != nullptr;
}

// The function that gives the registry of the TensorRT library called `name`; null unless that is loaded or `mayLoad`.
GetRegistry findRegistry(const char* name, bool mayLoad) {
    void* library = dlopen(name, mayLoad ? RTLD_LAZY : RTLD_LAZY | RTLD_NOLOAD);
    return library == nullptr ? nullptr : reinterpret_cast<GetRegistry>(dlsym(library, "getPluginRegistry"));
}

__attribute__((constructor)) void registerOnLoad() {
    const char* ownFile = fileOf(&kNumCreators);
    if (ownFile == nullptr) {
        return;
    }
    GetRegistry found[] = {
        findRegistry("libnvinfer.so." EDGERCNN_MAJOR, false),
        findRegistry("libnvinfer_lean.so." EDGERCNN_MAJOR, false),
        findRegistry("libnvinfer_dispatch.so." EDGERCNN_MAJOR, false),
    };
    if (std::any_of(std::begin(found), std::end(found), isAmongCallers)) {
        return;
    }
    const auto isLoaded = [](GetRegistry getRegistry) { return getRegistry != nullptr; };
    if (std::none_of(std::begin(found), std::end(found), isLoaded) && isPreloaded(ownFile)) {
        found[0] = findRegistry("libnvinfer.so." EDGERCNN_MAJOR, true);
        if (found[0] == nullptr) {
            fprintf(stderr, "edgercnn: no plugins from LD_PRELOAD, add the folder of %s to LD_LIBRARY_PATH\n",
                    "libnvinfer.so." EDGERCNN_MAJOR);
        }
    }
    for (GetRegistry getRegistry : found) {
        if (isLoaded(getRegistry)) {
            dlopen(ownFile, RTLD_LAZY | RTLD_NOLOAD | RTLD_NODELETE);  // the registry points here from now on
            for (int32_t index = 0; index < kNumCreators; ++index) {
                getRegistry()->registerCreator(*creators()[index], "");
            }
        }
    }
}

}  // namespace
}  // namespace edgercnn

EDGERCNN_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& numCreators) {
    numCreators = edgercnn::kNumCreators;
    return edgercnn::creators();
}

// Part of the interface; the plugins do not log through TensorRT (common/plugin_base.h says why).
EDGERCNN_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder*) {}
