"""The README.md in a Triton model's folder: how to start the server for this model."""

from __future__ import annotations

import shlex
from pathlib import Path

from export.plan_files import needs_library
from export.triton_config import SPEC_PARAMETER, ModelSettings
from plugins.load import LIBRARIES
from runtime.plan import PlanRecord

IMAGE = "nvcr.io/nvidia/tritonserver:YY.MM-py3"
MOUNTED_PLUGINS = f"/opt/edgercnn/{LIBRARIES['plugins']}"


def readme(repository: Path, settings: ModelSettings, record: PlanRecord | None, plugins: Path | None) -> str:
    """The text, with command lines for this model.

    Args:
        record: of the plan; None for an ONNX file.
        plugins: where the plan's library is; None where it is not here, or not needed.
    """
    library = (plugins or Path(LIBRARIES["plugins"])) if record is not None and needs_library(record) else None
    parts = [
        f"# {settings.name}\n",
        "Written by `edgercnn triton`. Start the server in its container:\n",
        _code(_docker(repository, settings, record, library)),
        "or where Triton is installed (on a Jetson, for instance):\n",
        _code(_plain(repository, record, library)),
    ]
    if record is not None:
        parts.append(
            f"The plan was built by TensorRT {record.version} for {_gpus(record)}. YY.MM is a release of Triton with "
            f"that TensorRT: see NVIDIA's support matrix.{_compatible(record)}\n"
        )
    if library is not None:
        parts.append(
            "`plugins=` opens the library before the model is loaded. The same with the environment: "
            f"`LD_PRELOAD={shlex.quote(str(library))} tritonserver ...`. It is the very file that the plan was built "
            "with; it belongs to one major version of TensorRT.\n"
        )
    parts.append(
        "Inputs and outputs are those of docs/serving.md. Clients find the DetectorSpec, which says how a frame "
        f"becomes input, in the model's configuration: parameter `{SPEC_PARAMETER}`. `labels.txt` has the class names, "
        "one a line.\n"
    )
    return "\n".join(parts)


def _docker(repository: Path, settings: ModelSettings, record: PlanRecord | None, library: Path | None) -> list[str]:
    words = ["docker", "run", "--rm", "-p8000:8000", "-p8001:8001", "-p8002:8002"]
    if settings.device == "gpu":
        words.insert(3, "--gpus=all")
    words += ["-v", f"{repository.resolve()}:/models:ro"]
    if library is not None:
        words += ["-v", f"{library.resolve()}:{MOUNTED_PLUGINS}:ro"]
    mounted = Path(MOUNTED_PLUGINS) if library is not None else None
    return [*words, IMAGE, *_server(Path("/models"), record, mounted)]


def _plain(repository: Path, record: PlanRecord | None, library: Path | None) -> list[str]:
    return _server(repository.resolve(), record, library.resolve() if library is not None else None)


def _server(repository: Path, record: PlanRecord | None, library: Path | None) -> list[str]:
    words = ["tritonserver", f"--model-repository={repository}"]
    if library is not None:
        words.append(f"--backend-config=tensorrt,plugins={library}")
    if record is not None and (record.version_compatible or record.plugins_embedded):
        words.append("--backend-config=tensorrt,version-compatible=true")
    return words


def _gpus(record: PlanRecord) -> str:
    sms = ", ".join(f"sm_{sm}" for sm in record.sms)
    return f"{record.gpu_name} ({sms})" if record.gpu_name else sms


def _compatible(record: PlanRecord) -> str:
    if record.plugins_embedded:
        return " The plugins are inside the plan; `version-compatible=true` lets TensorRT load code from a plan."
    return " Or with a newer one: the plan is version-compatible." if record.version_compatible else ""


def _code(words: list[str]) -> str:
    return f"```\n{shlex.join(words)}\n```\n"
