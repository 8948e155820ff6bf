"""The builder's configuration for a set of options, asked for by feature: a TensorRT that lacks one says so."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from export.engine_options import BuildOptions
from runtime.backends.tensorrt_library import TensorRt
from runtime.errors import BackendUnavailableError, UserError
from runtime.plan import TensorProfile

RTX_TURING = 75  # TensorRT-RTX 1.7 has no FP32 matrix products for it, which the bodies need


def configure(
    library: TensorRt,
    builder: Any,
    options: BuildOptions,
    profiles: Sequence[TensorProfile],
    sms: Sequence[int],
    plugins: Path | None,
) -> Any:
    """A builder's configuration.

    Args:
        sms: GPUs to build for; TensorRT itself builds for the present one, whatever this says.
        plugins: the library that the plan needs, for --embed-plugins.

    Raises:
        UserError: an option that does not fit this machine, or a timing cache that cannot be used.
        BackendUnavailableError: this TensorRT lacks an option.
    """
    config = builder.create_builder_config()
    _set_precise(library, config)
    _set_profile(builder, config, profiles)
    if library.flavour == "tensorrt_rtx":
        _set_sms(library, config, sms)
        _set_capturable(library, config)
    if options.workspace is not None:
        config.set_memory_pool_limit(library.module.MemoryPoolType.WORKSPACE, options.workspace)
    if options.opt_level is not None:
        config.builder_optimization_level = options.opt_level
    if options.refit:
        _set_flag(library, config, "REFIT", "--refit")
    if options.verbose:
        config.profiling_verbosity = library.module.ProfilingVerbosity.DETAILED
    _set_compatibility(library, config, options, plugins)
    if options.dla is not None:
        _set_dla(library, builder, config, options.dla)
    if options.timing_cache is not None:
        _set_timing_cache(library, config, options.timing_cache)
    return config


def target_sms(library: TensorRt, asked: Sequence[int], present: int | None) -> tuple[int, ...]:
    """The GPUs that a plan will be for.

    Args:
        asked: --sm; empty: the present GPU's, or without a GPU every one that TensorRT-RTX can build for.
        present: SM of this machine's GPU.

    Raises:
        UserError: TensorRT-RTX does not build for one of them.
    """
    if library.flavour == "tensorrt":
        assert present is not None, "the command line checked that there is a GPU"
        return (present,)
    names = library.module.ComputeCapability.__members__
    listed = sorted(int(name[2:]) for name in names if name.startswith("SM") and name[2:].isdecimal())
    known = [sm for sm in listed if sm != RTX_TURING]
    sms = tuple(asked) or ((present,) if present else tuple(known))
    for sm in sms:
        if sm not in known:
            whose = "--sm is" if asked else "this machine's GPU is"
            raise UserError(
                f"{whose} {sm}, which {library.title} cannot build the detector for: give --sm with some of "
                f"{', '.join(map(str, known))}."
            )
    return tuple(dict.fromkeys(sms))


def _set_precise(library: TensorRt, config: Any) -> None:
    """No TF32: FP32 layers would round their inputs to 10 bits, as FP16 does, and lose PyTorch's boxes."""
    flags = library.module.BuilderFlag
    if hasattr(flags, "TF32"):
        config.clear_flag(flags.TF32)


def _set_profile(builder: Any, config: Any, profiles: Sequence[TensorProfile]) -> None:
    profile = builder.create_optimization_profile()
    for entry in profiles:
        profile.set_shape(entry.name, entry.min, entry.opt, entry.max)
    index = config.add_optimization_profile(profile)
    assert index == 0, f"TensorRT does not take the profile {profiles}"


def _set_sms(library: TensorRt, config: Any, sms: Sequence[int]) -> None:
    capabilities = library.module.ComputeCapability
    config.num_compute_capabilities = len(sms)
    for index, sm in enumerate(sms):
        config.set_compute_capability(getattr(capabilities, f"SM{sm}"), index)


def _set_capturable(library: TensorRt, config: Any) -> None:
    """No allocation while the plan runs, which a CUDA graph does not allow. Since TensorRT-RTX 1.2."""
    flags = library.module.BuilderFlag
    if hasattr(flags, "REQUIRE_USER_ALLOCATION"):
        config.set_flag(flags.REQUIRE_USER_ALLOCATION)


def _set_flag(library: TensorRt, config: Any, name: str, option: str) -> None:
    flags = library.module.BuilderFlag
    if not hasattr(flags, name):
        raise BackendUnavailableError(f"{library.title} has no {option}: leave it out, or use another TensorRT.")
    config.set_flag(getattr(flags, name))


def _set_compatibility(library: TensorRt, config: Any, options: BuildOptions, plugins: Path | None) -> None:
    if options.version_compatible:
        _set_flag(library, config, "VERSION_COMPATIBLE", "--version-compatible")
    if options.hardware_compatible:
        config.hardware_compatibility_level = library.module.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.embed_plugins:
        assert plugins is not None, "TensorRT-RTX was refused before"
        config.plugins_to_serialize = [str(plugins)]


def _set_dla(library: TensorRt, builder: Any, config: Any, core: int) -> None:
    """Backbone and FPN on a DLA core, the rest on the GPU."""
    cores = builder.num_DLA_cores
    if core >= cores:
        has = f"DLA cores 0 to {cores - 1}" if cores else "no DLA core that this TensorRT can use"
        raise UserError(f"--dla is {core}, and this machine has {has}: leave --dla out, or give one of them.")
    config.default_device_type = library.module.DeviceType.DLA
    config.DLA_core = core
    config.set_flag(library.module.BuilderFlag.GPU_FALLBACK)


def _set_timing_cache(library: TensorRt, config: Any, path: Path) -> None:
    try:
        data = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise UserError(f"--timing-cache {path} cannot be read ({error.strerror or error}): give another.") from error
    cache = config.create_timing_cache(data)
    if cache is None or not config.set_timing_cache(cache, False):
        raise UserError(
            f"--timing-cache {path} does not fit {library.title} and this GPU: delete the file, or name another."
        )
