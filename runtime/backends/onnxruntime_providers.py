"""ONNX Runtime's execution providers: their options, and what became of those that were asked for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from runtime.errors import BackendUnavailableError
from runtime.spec import DetectorSpec

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
ON_GPU = (CUDA, TENSORRT)
SHORT_NAMES = {"cpu": CPU, "cuda": CUDA, "tensorrt": TENSORRT}
RECORD_PLACES = "session.record_ep_graph_assignment_info"  # 1.31 knows it; 1.23 does not, and ignores it


def provider_options(name: str, engines: Path | None = None) -> dict[str, str]:
    """The options that a provider is opened with.

    CUDA: cuDNN times every convolution algorithm once, at the first frame, which a fixed canvas is worth; memory grows
    by what is asked for, not by powers of two; no TF32 (ONNX Runtime 1.18 and later know the option), which would round
    FP32 products to ten bits and give other boxes than PyTorch on the CPU.

    TensorRT: no trt_fp16_enable, because without it the provider builds strongly typed networks, so that precision is
    what stands in the graph. No trt_extra_plugin_lib_paths: see `docs/runtime.md`, "ONNX Runtime's providers".
    Ref: https://onnxruntime.ai/docs/execution-providers/TensorRT-ExecutionProvider.html

    Args:
        engines: folder for TensorRT's engines and timings of this one file; needed for TensorRT.
    """
    if name == CUDA:
        return {
            "device_id": "0",
            "cudnn_conv_algo_search": "EXHAUSTIVE",
            "arena_extend_strategy": "kSameAsRequested",
            "use_tf32": "0",
        }
    if name == TENSORRT:
        assert engines is not None, "TensorRT's engines need a folder"
        return {
            "device_id": "0",
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(engines),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(engines),
        }
    return {}


def check_tensorrt_takes(spec: DetectorSpec, path: Path) -> None:
    """The bodies are inlined by a CPU session, which would put casts to FP32 around FP16 operators.

    Raises:
        BackendUnavailableError: the file is not FP32.
    """
    if spec.precision != "fp32":
        raise BackendUnavailableError(
            f"{path} is {spec.precision}, and ONNX Runtime's TensorRT provider takes our fp32 files only: build a plan "
            f"with `python export/build_engine.py --onnx {path}`, or ask for cuda."
        )


def placement(session: Any) -> dict[str, int]:
    """Number of nodes per provider, of a session opened with RECORD_PLACES; empty where ONNX Runtime does not tell."""
    tell = getattr(session, "get_provider_graph_assignment_info", None)
    if tell is None:
        return {}
    counts: Counter[str] = Counter()
    try:
        for part in tell():
            counts[part.ep_name] += len(part.get_nodes())
    except Exception:  # its exceptions have no common base; without the record there is nothing to tell
        return {}
    return dict(counts)


def describe_providers(wanted: list[str], got: list[str], places: dict[str, int]) -> str:
    """ "CUDAExecutionProvider (310 nodes) + CPUExecutionProvider (12 nodes)", and what fell away."""
    parts = [f"{name} ({places.get(name, 0)} nodes)" if places and len(got) > 1 else name for name in got]
    lost = [name for name in wanted if name not in got]
    note = f" ({' and '.join(lost)} could not start)" if lost else ""
    return " + ".join(parts) + note
