"""The README.md in a Triton model's folder: how to start the server for this model."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from export.plan_files import SOME_LIBRARY, missing_library, needs_library
from export.triton_config import SPEC_PARAMETER, ModelSettings
from plugins.load import LIBRARIES
from runtime.plan import PlanRecord

IMAGE = "nvcr.io/nvidia/tritonserver:YY.MM-py3"
MOUNTED_PLUGINS = f"/opt/edgercnn/{LIBRARIES['plugins']}"


@dataclass(frozen=True)
class Server:
    """What a server of all models needs; its command lines."""

    repository: Path
    record: PlanRecord | None  # of the plan; None: ONNX files only
    plugins: Path | None  # the plan's library; None: not on this machine, or not needed
    gpu: bool

    @property
    def library(self) -> Path | None:
        """The library to load before the plan, or a name to replace."""
        needed = self.record is not None and needs_library(self.record)
        return (self.plugins or SOME_LIBRARY).resolve() if needed else None

    def docker(self) -> list[str]:
        """In Triton's container."""
        words = ["docker", "run", "--rm", *(["--gpus=all"] if self.gpu else [])]
        words += ["-p8000:8000", "-p8001:8001", "-p8002:8002", "-v", f"{self.repository.resolve()}:/models:ro"]
        if self.library is not None:
            words += ["-v", f"{self.library}:{MOUNTED_PLUGINS}:ro"]
        mounted = Path(MOUNTED_PLUGINS) if self.library is not None else None
        return [*words, IMAGE, *self._tritonserver(Path("/models"), mounted)]

    def plain(self) -> list[str]:
        """Where Triton is installed."""
        return self._tritonserver(self.repository.resolve(), self.library)

    def _tritonserver(self, repository: Path, library: Path | None) -> list[str]:
        words = ["tritonserver", f"--model-repository={repository}"]
        if library is not None:
            words.append(f"--backend-config=tensorrt,plugins={library}")
        if self.record is not None and (self.record.version_compatible or self.record.plugins_embedded):
            words.append("--backend-config=tensorrt,version-compatible=true")
        return words


def readme(settings: ModelSettings, record: PlanRecord | None, server: Server) -> str:
    """The text, with command lines for the server.

    Args:
        record: of the model's plan; None for an ONNX file.
    """
    plan = server.record
    parts = [
        f"# {settings.name}\n",
        "Written by `edgercnn triton`. Start the server in its container:\n",
        _code(server.docker()),
        "or where Triton is installed (on a Jetson, for instance):\n",
        _code(server.plain()),
        _release(settings, record, plan),
    ]
    if server.library is not None:
        parts.append(
            "`plugins=` opens the library before the model is loaded. The same with the environment: "
            f"`LD_PRELOAD={shlex.quote(str(server.library))} tritonserver ...`. It is the very file that the plan was "
            "built with; it belongs to one major version of TensorRT.\n"
        )
    if plan is not None and (note := missing_library(plan, server.plugins)):
        parts.append(f"{SOME_LIBRARY} stands for it in these lines: {note}\n")
    parts.append(
        "Inputs and outputs are those of docs/serving.md. Clients find the DetectorSpec, which says how a frame "
        f"becomes input, in the model's configuration: parameter `{SPEC_PARAMETER}`. `labels.txt` has the class names, "
        "one a line.\n"
    )
    return "\n".join(parts)


def _release(settings: ModelSettings, record: PlanRecord | None, plan: PlanRecord | None) -> str:
    """What YY.MM stands for."""
    text = (
        ""
        if record is not None
        else f"This ONNX file runs in Triton's ONNX Runtime, on the {settings.device.upper()}. "
    )
    if plan is not None:
        whose = "The plan" if record is not None else "The plan beside it"
        return (
            f"{text}{whose} was built by TensorRT {plan.version} for {_gpus(plan)}. YY.MM is a release of Triton with "
            f"that TensorRT: see NVIDIA's support matrix.{_compatible(plan)}\n"
        )
    return f"{text}YY.MM is a release of Triton, year and month: any whose ONNX Runtime is 1.18 or newer.\n"


def _gpus(record: PlanRecord) -> str:
    sms = ", ".join(f"sm_{sm}" for sm in record.sms)
    return f"{record.gpu_name} ({sms})" if record.gpu_name else sms


def _compatible(record: PlanRecord) -> str:
    if record.plugins_embedded:
        return " The plugins are inside the plan; `version-compatible=true` lets TensorRT load code from a plan."
    return " Or with a newer one: the plan is version-compatible." if record.version_compatible else ""


def _code(words: list[str]) -> str:
    return f"```\n{shlex.join(words)}\n```\n"
