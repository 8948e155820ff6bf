"""Opens InferenceSessions with our settings: threads, spinning, providers, and the optimised model from the cache."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from runtime.backends import onnxruntime_cache as cache
from runtime.backends.onnxruntime_providers import CUDA, ON_GPU, RECORD_PLACES, TENSORRT, provider_options
from runtime.errors import ArtifactError, BackendUnavailableError, OutputError, first_line
from runtime.hardware import cpu_flags, cpu_name, physical_cores
from runtime.plan import file_sha256

FATAL = 4  # ONNX Runtime's logging level: its errors reach us as exceptions, its warnings say nothing of use here
# Between two operators a waiting thread spins so long before it sleeps, us. 50 is as fast as the library's own ms where
# the cores are idle, and on shared cores leaves them to those who have work: measured in docs/runtime.md.
SPIN_US = "50"
# Where an optimised model's weights lie: from so many bytes on in a file that is mapped, or in the model. ONNX Runtime
# 1.23 writes the first kind so that it cannot read it ("initializer name is not unique"), and so gets the second.
WEIGHTS_OUTSIDE = ("1024", "")


@dataclass(frozen=True)
class Opened:
    """An InferenceSession, and a word on where its model came from ("" for the file itself)."""

    session: Any
    origin: str


def load_onnxruntime() -> Any:
    """The module `onnxruntime`, with its warnings off.

    Raises:
        BackendUnavailableError: it cannot be imported.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise BackendUnavailableError(
            "running an .onnx file needs ONNX Runtime, which cannot be imported here: `pip install onnxruntime` "
            "(or onnxruntime-gpu)."
        ) from error
    ort.set_default_logger_severity(FATAL)
    return ort


def session_options(ort: Any, threads: int | None, *, optimise: bool = True) -> Any:
    """Our SessionOptions; `threads` None takes `physical_cores()`, which knows of affinity and container limits."""
    options = ort.SessionOptions()
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = threads or physical_cores()
    options.log_severity_level = FATAL
    options.add_session_config_entry("session.intra_op.spin_duration_us", SPIN_US)
    return options


def open_session(ort: Any, path: Path, providers: list[str], threads: int | None) -> Any:
    """An InferenceSession with our settings, for any ONNX file, without the cache.

    Raises:
        ArtifactError: ONNX Runtime cannot load the file.
    """
    return _session(ort, path, session_options(ort, threads), providers)


def open_on_gpu(ort: Any, path: Path, providers: list[str], threads: int | None) -> Opened:
    """A session for CUDA or TensorRT, which notes where each node went.

    Raises:
        ArtifactError: ONNX Runtime cannot load the file.
        OutputError: TensorRT's engines need the cache, and it cannot be written.
    """
    origin, source, engines = "", path, None
    if TENSORRT in providers:
        source, engines = inlined_model(ort, path)
        origin = f"engines in {engines}"
    options = session_options(ort, threads)
    options.add_session_config_entry(RECORD_PLACES, "1")
    if CUDA in providers and hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # finds CUDA and cuDNN in pip's nvidia-* packages too
    with_options = [(name, provider_options(name, engines)) if name in ON_GPU else name for name in providers]
    return Opened(_session(ort, source, options, with_options), origin)


def open_on_cpu(ort: Any, path: Path, providers: list[str], threads: int | None, digest: Future[str] | None) -> Opened:
    """A session for the CPU, from the cache where it has the optimised model, else filling the cache.

    Args:
        digest: the file's SHA-256, or None to leave the cache alone.

    Raises:
        ArtifactError: ONNX Runtime cannot load the file.
    """
    if digest is None:
        return Opened(open_session(ort, path, providers, threads), "")
    reason = "it does not load what it wrote"
    try:
        for outside in WEIGHTS_OUTSIDE:
            folder = cache.entry_folder(_facts(ort, digest.result(), providers, f"all, weights {outside}"))
            session = _from_entry(ort, folder, providers, threads)
            if session is not None:
                return Opened(session, "optimised model from the cache")
            if not cache.is_useless(folder):
                options = session_options(ort, threads)
                session = cache.write_entry(folder, partial(_write_optimised, ort, path, options, providers, outside))
                return Opened(session, "optimised model now in the cache")
    except (OutputError, OSError, ArtifactError) as error:  # an unusable file fails once more, with its own sentence
        reason = first_line(error).rstrip(".")
    return Opened(open_session(ort, path, providers, threads), f"no cache: {reason}")


def inlined_model(ort: Any, path: Path) -> tuple[Path, Path]:
    """The file with its ops' bodies inlined, for TensorRT's provider, and the folder for its engines.

    The provider asks TensorRT about the graph before ONNX Runtime inlines functions, in a copy that lacks them, and
    fails there ("graph_build.Resolve().IsOK() was false", https://github.com/microsoft/onnxruntime/issues/22199).
    A CPU session at ORT_ENABLE_BASIC writes the same graph in standard operators.

    Raises:
        ArtifactError: ONNX Runtime cannot load the file.
        OutputError: the cache cannot be written.
    """
    folder = cache.entry_folder(_facts(ort, file_sha256(path), [TENSORRT], "inlined"))
    options = session_options(ort, None)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC

    def write(begun: Path) -> Any:
        options.optimized_model_filepath = str(begun / cache.MODEL)
        return _session(ort, path, options, ["CPUExecutionProvider"])

    if not cache.is_intact(folder):
        try:
            cache.write_entry(folder, write)
        except OSError as error:
            raise OutputError(
                f"TensorRT's provider needs a cache, and {folder} cannot be written ({error.strerror or error}): set "
                "EDGERCNN_CACHE to a folder that can be."
            ) from error
    cache.mark_used(folder)
    engines = folder / "engines"
    engines.mkdir(exist_ok=True)
    return folder / cache.MODEL, engines


def digest_in_background(path: Path) -> Future[str] | None:
    """The file's SHA-256, computed while ONNX Runtime is imported; None where the cache is not for this file.

    Raises:
        UserError: EDGERCNN_ORT_CACHE has a wrong value.
    """
    if not cache.is_on() or path.stat().st_size < cache.LEAST_BYTES:
        return None
    return _in_background(file_sha256, path)


def _from_entry(ort: Any, folder: Path, providers: list[str], threads: int | None) -> Any:
    """A session from a cache entry; None where it is missing, damaged (then deleted) or useless (then marked so)."""
    if not cache.is_complete(folder):
        return None
    intact = _in_background(cache.is_intact, folder)  # reads what the session maps meanwhile
    try:
        session = _session(ort, folder / cache.MODEL, session_options(ort, threads, optimise=False), providers)
    except ArtifactError:
        session = None
    if not intact.result():
        cache.remove(folder)
        return None
    if session is None:
        cache.mark_useless(folder)
        return None
    cache.mark_used(folder)
    return session


def _facts(ort: Any, digest: str, providers: list[str], level: str) -> dict[str, Any]:
    """All that an optimised model depends on."""
    return {
        "source": digest,
        "onnxruntime": [ort.__version__, getattr(ort, "get_build_info", str)()],
        "providers": providers,
        "level": level,
        "cpu": [cpu_name(), cpu_flags()],
        "layout": 1,  # of an entry; count up when it changes
    }


def _write_optimised(ort: Any, path: Path, options: Any, providers: list[str], outside: str, folder: Path) -> Any:
    """A session of the file that writes its optimised model into `folder`, and runs as it would without."""
    options.optimized_model_filepath = str(folder / cache.MODEL)
    if outside:
        external = "session.optimized_model_external_initializers_"
        options.add_session_config_entry(external + "file_name", cache.WEIGHTS)
        options.add_session_config_entry(external + "min_size_in_bytes", outside)
    return _session(ort, path, options, providers)


def _session(ort: Any, path: Path, options: Any, providers: list) -> Any:
    try:
        return ort.InferenceSession(str(path), sess_options=options, providers=providers)
    except Exception as error:  # its exceptions have no common base
        raise ArtifactError(
            f"ONNX Runtime {ort.__version__} cannot load {path}: {first_line(error).rstrip('.')}"
        ) from error


def _in_background(work: Any, path: Path) -> Future:
    pool = ThreadPoolExecutor(1)
    future = pool.submit(work, path)
    pool.shutdown(wait=False)
    return future
