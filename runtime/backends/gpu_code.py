"""Which GPUs a library's compiled code runs on."""

from __future__ import annotations

from collections.abc import Sequence

TEGRA = (72, 87, 101, 110)  # SMs of Jetsons: no binary for them runs elsewhere, none of elsewhere on them


def runs_on(architectures: Sequence[str] | Sequence[int], sm: int) -> bool:
    """Whether a library built for these SMs has code for a GPU of that SM.

    Code runs on later minor versions of its major one, but not between desktop and Jetson; for the last architecture
    plugins/build.py adds PTX, which the driver compiles for any later GPU.
    Ref: https://docs.nvidia.com/cuda/cuda-c-programming-guide/#binary-compatibility
    """
    built = [int(name) for name in architectures]
    same_major = [one for one in built if one // 10 == sm // 10 and one <= sm and one not in TEGRA and sm not in TEGRA]
    return sm in built or bool(same_major) or sm > built[-1]
