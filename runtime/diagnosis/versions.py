"""Which versions go with which GPU and which JetPack, as far as the doctor says so.

| target | TensorRT | CUDA | Python | SM |
|---|---|---|---|---|
| JetPack 6.1, 6.2 (Orin) | 10.3 (10.7 is the last upgrade) | 12.6 | 3.10 | 87 |
| JetPack 7.0, 7.1 (Thor) | 10.13.3 | 13.0 | 3.12 | 110 |
| JetPack 7.2 (Orin, Thor) | 10.16, 11.4.1 from 7.2.2 | 13.2 | 3.12 | 87, 110 |
| desktop, data centre | 10.3 and newer | 12, 13 | 3.10 to 3.14 | 75, 80, 86, 89, 90, 100, 120 |
| TensorRT-RTX 1.7 | like 11 | 12, 13 | 3.9 to 3.14 | 75, 80, 86, 89, 120, 121 |

Ref: the support matrices and release notes of TensorRT, TensorRT-RTX and JetPack at docs.nvidia.com.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

OLDEST_TENSORRT = (10, 3)
OLDEST_PYTHON = (3, 10)
WITHOUT_SM87 = (10, 13)  # built for Thor and servers: no kernels for Orin
RTX_SMS = (80, 86, 89, 120, 121)  # for 75 TensorRT-RTX 1.7 has no FP32 matrix product, which our bodies need
JETPACK_PYTHON = {"6": "3.10", "7": "3.12"}  # whose bindings of TensorRT JetPack brings
OLDEST_JETPACK = 6
TORCHVISION_AHEAD = 15  # torchvision 0.26 belongs to torch 2.11


def version_numbers(version: str | None) -> tuple[int, ...]:
    """(10, 13, 3) of "10.13.3.9+cuda13"; () of None."""
    return tuple(int(part) for part in re.match(r"[\d.]*", version or "")[0].split(".") if part)  # type: ignore[index]


def tensorrt_problem(version: str, sms: Sequence[int]) -> tuple[str, str]:
    """(what speaks against this TensorRT on these GPUs, what mends it); two empty texts where nothing does."""
    numbers = version_numbers(version)
    if numbers < OLDEST_TENSORRT:
        oldest = ".".join(map(str, OLDEST_TENSORRT))
        return (
            f"TensorRT {version} is older than {oldest}",
            "pip install --upgrade tensorrt (Jetson: JetPack 6.1 or newer)",
        )
    if numbers[:2] == WITHOUT_SM87 and 87 in sms:
        return f"TensorRT {version} has no kernels for sm_87", "sudo apt-get install tensorrt (10.16.1 or newer)"
    return "", ""


def rtx_problem(version: str, sms: Sequence[int]) -> str:
    """What speaks against running TensorRT-RTX on these GPUs; "" where nothing does."""
    lacking = [sm for sm in sms if sm not in RTX_SMS]
    return f"TensorRT-RTX {version} has no kernels for sm_{lacking[0]} that the detector needs" if lacking else ""


def torch_pair_fits(torch: str, torchvision: str) -> bool:
    """Whether these two were made for each other; True where the rule does not know."""
    first, second = version_numbers(torch), version_numbers(torchvision)
    if len(first) < 2 or len(second) < 2 or first[0] != 2 or second[0] != 0:
        return True
    return second[1] == first[1] + TORCHVISION_AHEAD


def jetpack_major(jetpack: str) -> int | None:
    """6 of "6.2.1"."""
    numbers = version_numbers(jetpack)
    return numbers[0] if numbers else None


def expected_python(jetpack: str) -> str | None:
    """The Python that JetPack's TensorRT is for, "3.10"."""
    major = jetpack_major(jetpack)
    return JETPACK_PYTHON.get(str(major))
