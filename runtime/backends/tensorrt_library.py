"""TensorRT's Python package, whichever is installed: the only place that imports it.

`tensorrt` (10.x, 11.x) takes our plugins; `tensorrt_rtx` (TensorRT for RTX) takes none and builds for GPUs that are not
there. Both have the same API as far as it is used here; what only one of them has is asked for with hasattr.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.errors import BackendUnavailableError, first_line
from runtime.plan import FLAVOURS

PLUGINS = ("RpnProposals", "PyramidRoiAlign", "RoiMaxPool", "BoxDetections")
PLUGIN_VERSION, PLUGIN_NAMESPACE = "1", ""
INSTALL = {
    "tensorrt": "`pip install -r requirements-tensorrt.txt` (on a Jetson, JetPack carries TensorRT)",
    "tensorrt_rtx": "`pip install tensorrt-rtx`",
}
Say = Callable[[str], None]


@dataclass(frozen=True)
class TensorRt:
    """An imported TensorRT."""

    module: Any
    flavour: str  # "tensorrt" or "tensorrt_rtx"
    version: str  # "10.16.1.11"

    @property
    def title(self) -> str:
        """`TensorRT 10.16.1.11`, for people."""
        return f"{TITLES[self.flavour]} {self.version}"

    @property
    def takes_plugins(self) -> bool:
        """TensorRT-RTX has no user plugins: its parser aborts the process on one."""
        return self.flavour == "tensorrt"


TITLES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}


def installed_flavours() -> tuple[str, ...]:
    """The packages that could be imported, the preferred one first; imports none of them."""
    specs = {name: importlib.util.find_spec(name) for name in FLAVOURS}
    # without an origin it is a folder of that name and no package: type stubs, or what an uninstall left behind
    return tuple(name for name, spec in specs.items() if spec is not None and spec.origin is not None)


def find_tensorrt(flavour: str | None = None) -> TensorRt:
    """Import TensorRT.

    Args:
        flavour: "tensorrt" or "tensorrt_rtx"; None takes the first that is installed.

    Raises:
        BackendUnavailableError: it is not installed, or cannot be imported.
    """
    installed = installed_flavours()
    if flavour is None:
        if not installed:
            raise BackendUnavailableError(
                f"TensorRT is not installed here (neither package, {' nor '.join(FLAVOURS)}): {INSTALL['tensorrt']}, "
                f"or {INSTALL['tensorrt_rtx']} for desktop GPUs."
            )
        flavour = installed[0]
    if flavour not in installed:
        raise BackendUnavailableError(
            f"{TITLES[flavour]} (the Python package {flavour}) is not installed here: {INSTALL[flavour]}."
        )
    try:
        module = importlib.import_module(flavour)
    except Exception as error:  # ImportError, or OSError and RuntimeError out of its library loading
        raise BackendUnavailableError(
            f"{TITLES[flavour]} is installed but cannot be imported ({first_line(error)}): {INSTALL[flavour]}."
        ) from error
    return TensorRt(module, flavour, module.__version__)


def make_logger(library: TensorRt, say: Say | None = None, *, verbose: bool = False) -> Any:
    """An ILogger that keeps TensorRT's errors in `errors` and gives the rest to `say`.

    TensorRT holds the first logger of a process for good, so it must outlive all that is made with it.

    Args:
        say: takes warnings, and with `verbose` every line; None drops them.
    """
    trt = library.module
    shown = trt.ILogger.VERBOSE if verbose else trt.ILogger.WARNING

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.errors.append(" ".join(message.split()))
            elif say is not None and severity <= shown:
                say(f"TensorRT: {message}")

    return Logger()


def missing_plugins(library: TensorRt) -> list[str]:
    """Our ops for which TensorRT's registry has no creator."""
    registry = library.module.get_plugin_registry()
    return [name for name in PLUGINS if registry.get_creator(name, PLUGIN_VERSION, PLUGIN_NAMESPACE) is None]


def load_plugins(library: TensorRt, path: Path) -> None:
    """Load the plugin library into TensorRT's registry, once for a process.

    Raises:
        BackendUnavailableError: TensorRT cannot load it, or it lacks one of the ops.
    """
    if not missing_plugins(library):
        return  # loaded before, or registered by LD_PRELOAD; a second load is refused
    advice = "build it for this machine with `python plugins/build.py`"
    try:
        handle = library.module.get_plugin_registry().load_library(str(path))
    except Exception as error:  # RuntimeError in most versions
        raise BackendUnavailableError(f"{library.title} cannot load {path} ({error}): {advice}.") from error
    missing = missing_plugins(library)
    if missing:
        reason = "could not be opened" if handle is None else f"has no {', '.join(missing)}"
        raise BackendUnavailableError(f"{path} {reason} in {library.title}: {advice}.")
