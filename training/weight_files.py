"""State dicts from files of others: found in torch hub's folder or by path, read without running code.

A file is a state dict, or a checkpoint that holds one under `model` or `state_dict`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.hub import download_url_to_file

from runtime.errors import ArtifactError
from runtime.files import check_writable

AGAIN = "delete it to have it downloaded again"  # what to do with a broken file that torchvision offers
OWN = "give a state dict written by torch.save"


def hub_file(url: str) -> Path:
    """The file of `url` in `torch.hub.get_dir()/checkpoints` ($TORCH_HOME/hub/checkpoints), downloaded if missing.

    Raises:
        ArtifactError: no file and no network.
    """
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if not file.is_file():
        _download(url, file)
    return file


def read_state(file: Path, hint: str = OWN) -> dict[str, Tensor]:
    """The tensors of `file` by name, on the CPU.

    Args:
        hint: what the user may do about a broken file, to end the sentence with.

    Raises:
        ArtifactError: a file that is missing, broken, or holds anything but tensors by name.
    """
    if not file.is_file():
        raise ArtifactError(f"there is no file {file}: expected PyTorch weights; correct the path.")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken pickle raises whatever its bytes happen to call for
        raise ArtifactError(f"{file} cannot be read as PyTorch weights: {hint}.") from error
    if isinstance(content, Mapping):
        inner = [content[key] for key in ("model", "state_dict") if isinstance(content.get(key), Mapping)]
        content = inner[0] if inner else content
    if not isinstance(content, Mapping) or not all(_is_weight(*item) for item in content.items()):
        raise ArtifactError(f"{file} does not hold a state dict: {hint}.")
    return dict(content)


def _is_weight(name: object, value: object) -> bool:
    """A tensor that holds its numbers, neither sparse nor quantised, by a name."""
    if not isinstance(name, str) or not isinstance(value, Tensor):
        return False
    return value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized


def _download(url: str, file: Path) -> None:
    """Download to `file`, whole or not at all, checked against the hash in its name."""
    check_writable(file)
    hash_prefix = file.stem.rsplit("-", maxsplit=1)[-1]
    try:
        download_url_to_file(url, str(file), hash_prefix, progress=True)
    except (OSError, RuntimeError) as error:  # no network (URLError is an OSError); another hash
        reason = getattr(error, "reason", error)
        raise ArtifactError(
            f"cannot download {url} ({reason}): put the file {file.name} into {file.parent}, then run this again."
        ) from error
