"""Tensor files: read strictly, and written whole."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from share_dist.errors import AdapterFormatError
from share_dist.files import write_file


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """
    Read a safetensors file and the metadata in its header.

    Raises:
        AdapterFormatError: There is no such file, or it is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
            return tensors, file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise AdapterFormatError(
            f"{path} cannot be read as safetensors ({error}): check the path, or fetch the file again",
            path=str(path),
        ) from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_file(path, save(plain, dict(metadata)))


def require_keys(path: Path, expected: set[str], found: Mapping[str, Tensor]) -> None:
    """
    Raise unless a file holds exactly what it should.

    Raises:
        AdapterFormatError: With every key that is missing or unexpected.
    """
    missing, unexpected = expected - found.keys(), found.keys() - expected
    if missing or unexpected:
        raise AdapterFormatError(
            f"{path}: missing keys are {_listing(missing)}; unexpected keys are "
            f"{_listing(unexpected)}. Write the file again from its source",
            path=str(path),
        )


def _listing(keys: set[str]) -> str:
    return ", ".join(sorted(keys)) or "none"
