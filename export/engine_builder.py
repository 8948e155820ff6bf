"""A network, built by TensorRT: everything that calls its builder. Runs in a process of its own (engine_worker.py).

Works from TensorRT 10.3 to 11.x and with TensorRT-RTX: what only some of them have is asked for with hasattr. The
network is strongly typed in all of them, so precision is what the graph says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.engine_config import configure, target_sms
from export.engine_options import BuildOptions
from export.engine_progress import PhaseTree, Show
from plugins.load import LibraryError, plugin_library
from runtime.backends.tensorrt_library import (
    PLUGIN_NAMESPACE,
    PLUGIN_VERSION,
    Say,
    TensorRt,
    find_tensorrt,
    load_plugins,
    make_logger,
)
from runtime.errors import ArtifactError, BackendUnavailableError, EdgeRcnnError, RunError, UserError
from runtime.plan import TensorProfile, file_sha256

MOST_ERRORS = 3  # of TensorRT's, in one sentence; the first is the cause
MEMORY_ERRORS = ("outofmemory", "out of memory", "memory allocation", "insufficient workspace", "workspace limit")


@dataclass(frozen=True)
class CustomNode:
    """A node of the graph that a plugin computes."""

    op_type: str
    name: str
    attributes: tuple[str, ...]


@dataclass(frozen=True)
class BuildRequest:
    """What to build; the ONNX file's bytes go beside it."""

    flavour: str
    present_sm: int | None  # of this machine's GPU
    profiles: tuple[TensorProfile, ...]
    custom_nodes: tuple[CustomNode, ...]  # those that plugins compute; () where bodies do
    options: BuildOptions


@dataclass(frozen=True)
class BuildResult:
    """A plan and what only the building process knows of it."""

    plan: bytes
    version: str
    sms: tuple[int, ...]
    plugins: Path | None  # the library that the plan needs
    plugins_sha256: str | None
    timing_cache: bytes | None


def build_plan(
    request: BuildRequest, model: bytes, *, say: Say, show: Show, is_cancelled: Callable[[], bool]
) -> BuildResult:
    """Parse `model` and build it.

    Args:
        say: takes TensorRT's warnings, and its whole log if the options say verbose.
        show: takes the fraction that is done and the name of TensorRT's phase, from any thread.
        is_cancelled: asked at each of TensorRT's steps.

    Raises:
        BackendUnavailableError: TensorRT, or the plugin library, cannot be used here.
        UserError: an option that does not fit; RunError: TensorRT refused the graph or failed.
    """
    library = find_tensorrt(request.flavour)
    request.options.check_flavour(library.flavour)
    sms = target_sms(library, request.options.sms, request.present_sm)
    logger = make_logger(library, say, verbose=request.options.verbose)
    plugins = _load_plugins(library, request.custom_nodes)
    builder = _make_builder(library, logger)
    network = builder.create_network(_network_flags(library))
    parser = library.module.OnnxParser(network, logger)  # holds the weights, so it must outlive the build
    _parse(library, parser, model, logger)
    config = configure(library, builder, request.options, request.profiles, sms, plugins)
    config.progress_monitor = _make_monitor(library, show, is_cancelled)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _build_error(library, logger.errors, request.options, is_cancelled())
    has_cache = request.options.timing_cache is not None
    return BuildResult(
        plan=bytes(memoryview(plan)),
        version=library.version,
        sms=sms,
        plugins=plugins,
        plugins_sha256=None if plugins is None else file_sha256(plugins),
        timing_cache=bytes(memoryview(config.get_timing_cache().serialize())) if has_cache else None,
    )


def check_attributes(library: TensorRt, nodes: Sequence[CustomNode]) -> None:
    """See that each node has exactly the attributes of its plugin: TensorRT drops those that a plugin does not list.

    Raises:
        ArtifactError: a node has others.
    """
    registry = library.module.get_plugin_registry()
    for node in nodes:
        creator = registry.get_creator(node.op_type, PLUGIN_VERSION, PLUGIN_NAMESPACE)
        if not hasattr(creator, "field_names"):
            raise BackendUnavailableError(f"{library.title} does not say which attributes {node.op_type} takes.")
        fields = {field.name for field in creator.field_names}
        unknown, missing = sorted(set(node.attributes) - fields), sorted(fields - set(node.attributes))
        if unknown or missing:
            parts = [f"has {', '.join(unknown)}"] if unknown else []
            parts += [f"lacks {', '.join(missing)}"] if missing else []
            raise ArtifactError(
                f"node {node.name!r} {' and '.join(parts)}, unlike the plugin {node.op_type} that is here: file and "
                "plugin library are of different versions; export the model and build the plugins again."
            )


def _load_plugins(library: TensorRt, nodes: Sequence[CustomNode]) -> Path | None:
    """The plugin library, loaded, and checked against the nodes; None for a TensorRT that takes none."""
    if not library.takes_plugins:
        return None
    try:
        path = plugin_library(library.version)
    except LibraryError as error:
        raise BackendUnavailableError(str(error)) from error
    load_plugins(library, path)
    check_attributes(library, nodes)
    return path


def _make_builder(library: TensorRt, logger: Any) -> Any:
    try:
        return library.module.Builder(logger)
    except (TypeError, RuntimeError) as error:  # "factory function returned nullptr": no driver, or too old a one
        reason = logger.errors[0] if logger.errors else str(error).splitlines()[0]
        raise BackendUnavailableError(
            f"{library.title} cannot start here ({reason}): `python runtime/doctor.py` says what is missing."
        ) from error


def _network_flags(library: TensorRt) -> int:
    """Strong typing: a flag in 10.x; in 11.x, and TensorRT-RTX, every network has it and the flag may be gone."""
    flags = getattr(library.module, "NetworkDefinitionCreationFlag", None)
    return 1 << int(flags.STRONGLY_TYPED) if flags is not None and hasattr(flags, "STRONGLY_TYPED") else 0


def _parse(library: TensorRt, parser: Any, model: bytes, logger: Any) -> None:
    if parser.parse(model):
        return
    errors = [parser.get_error(index).desc() for index in range(parser.num_errors)] or logger.errors
    raise RunError(f"{library.title} cannot read the graph ({_joined(errors)}): {_report_advice()}.")


def _make_monitor(library: TensorRt, show: Show, is_cancelled: Callable[[], bool]) -> Any:
    trt, phases = library.module, PhaseTree()

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        """Called by TensorRT, from any of its threads; must not raise."""

        def __init__(self) -> None:
            super().__init__()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            show(phases.start(phase_name, parent_phase, num_steps), phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            show(phases.step(phase_name, step), phase_name)
            return not is_cancelled()

        def phase_finish(self, phase_name: str) -> None:
            show(phases.finish(phase_name), phase_name)

    return Monitor()


def _build_error(library: TensorRt, errors: Sequence[str], options: BuildOptions, cancelled: bool) -> EdgeRcnnError:
    """The sentence for a build that gave no plan."""
    text = " ".join(errors).lower()
    reason = f"{library.title} built no plan ({_joined(errors)})"
    if cancelled:
        return RunError(f"{library.title} was stopped before the plan was finished: start the build again.")
    if any(sign in text for sign in MEMORY_ERRORS):
        if options.workspace is not None:
            given = options.workspace / (1 << 20)
            return UserError(f"{reason}: --workspace of {given:g} MiB is too small; give more, or leave it out.")
        return RunError(f"{reason}: memory ran out; close other programs, or give --batch with fewer images at most.")
    return RunError(f"{reason}: {_report_advice()}.")


def _joined(errors: Sequence[str]) -> str:
    shown = "; ".join(" ".join(error.split()).rstrip(".") for error in errors[:MOST_ERRORS])
    return shown or "it did not say why"


def _report_advice() -> str:
    return "run the command again with --verbose for TensorRT's log, and report it with the log"
