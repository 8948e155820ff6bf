"""Load the plugin library into a TensorRT's own registry, in a process of its own: no GPU is needed for that.

    python plugin_registry.py MODULE LIBRARY STEP...

MODULE is tensorrt, tensorrt_lean_bindings or tensorrt_rtx. What the steps find is printed as JSON, a line for each:

    open      someone opens the library (ctypes.CDLL): DeepStream, Triton and trtexec --staticPlugins do
    close     and closes it
    load      IPluginRegistry.load_library: trtexec --dynamicPlugins does
    unload    IPluginRegistry.deregister_library
    build     load_library of a builder's own registry
    find      the creators in the registry: name, version, namespace and fields
    create    a RoiMaxPool, with the attributes it needs, then without one of them
"""

from __future__ import annotations

import ctypes
import importlib
import json
import sys
from typing import Any

import numpy as np

NAMES = ("RpnProposals", "PyramidRoiAlign", "RoiMaxPool", "BoxDetections")


class Steps:
    """The steps, by name."""

    def __init__(self, trt: Any, library: str) -> None:
        self.trt, self.library = trt, library
        self.registry = trt.get_plugin_registry()
        self.opened = self.loaded = self.builder = None

    def open(self) -> bool:
        self.opened = ctypes.CDLL(self.library)
        return True

    def close(self) -> bool:
        dlclose = ctypes.CDLL(None).dlclose
        dlclose.argtypes = [ctypes.c_void_p]
        return dlclose(self.opened._handle) == 0

    def load(self) -> bool:
        self.loaded = self.registry.load_library(self.library)
        return self.loaded is not None

    def unload(self) -> bool:
        self.registry.deregister_library(self.loaded)
        return True

    def build(self) -> bool:
        self.builder = self.trt.Builder(self.trt.Logger(self.trt.Logger.ERROR))
        return self.builder.get_plugin_registry().load_library(self.library) is not None

    def find(self) -> dict[str, Any]:
        found = {}
        for creator in self.registry.all_creators:
            if creator.name in NAMES:
                fields = [[field.name, field.type.name.lower(), field.size] for field in creator.field_names]
                found[creator.name] = [creator.plugin_version, creator.plugin_namespace, fields]
        return found

    def create(self) -> dict[str, Any]:
        trt = self.trt
        creator = self.registry.get_creator("RoiMaxPool", "1", "")
        size = trt.PluginField("output_size", np.array([7], np.int32), trt.PluginFieldType.INT32)
        scale = trt.PluginField("spatial_scale", np.array([0.0625], np.float32), trt.PluginFieldType.FLOAT32)
        plugin = creator.create_plugin("pool", trt.PluginFieldCollection([size, scale]), trt.TensorRTPhase.BUILD)
        refused = creator.create_plugin("pool", trt.PluginFieldCollection([size]), trt.TensorRTPhase.BUILD)
        core = plugin.get_capability_interface(trt.PluginCapabilityType.CORE)
        return {"name": core.plugin_name, "version": core.plugin_version, "refused": refused is None}


def main() -> None:
    """Run the steps."""
    module, library, *names = sys.argv[1:]
    steps = Steps(importlib.import_module(module), library)
    for name in names:
        print(json.dumps(getattr(steps, name)()), flush=True)


if __name__ == "__main__":
    main()
