"""A Hugging Face checkpoint folder, read lazily: headers first, each tensor only when it is written."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from python_backend.errors import BundleError

_DTYPES: Mapping[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I8": np.int8,
}
FLOATS = ("F64", "F32", "F16", "BF16")
"""Dtypes of weights that are not quantized."""
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format itself


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor lies.

    Attributes:
        path: the safetensors file.
        offset: first byte in the file.
        num_bytes: length in the file.
        dtype: safetensors dtype name, such as `BF16`.
        shape: as stored.
    """

    path: Path
    offset: int
    num_bytes: int
    dtype: str
    shape: tuple[int, ...]

    def array(self) -> np.ndarray:
        """A read-only map of the file; the bytes are paged in when they are used."""
        return np.memmap(
            self.path, dtype=_DTYPES[self.dtype], mode="r", offset=self.offset, shape=self.shape
        )


class Checkpoint:
    """Config and weights of a local checkpoint folder.

    Raises:
        BundleError: the folder, its config.json or its weights are missing, damaged, or in a form
            this project does not read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = read_config(folder)
        files = sorted(folder.glob("*.safetensors"))
        files = [file for file in files if file.name != "reference.safetensors"]
        if not files:
            raise BundleError(
                f"{folder} has no *.safetensors file; only safetensors weights are read"
            )
        self._tensors: dict[str, StoredTensor] = {}
        for file in files:
            self._tensors.update(_read_header(file))
        _check_index(folder, files)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __getitem__(self, name: str) -> StoredTensor:
        try:
            return self._tensors[name]
        except KeyError:
            raise BundleError(
                f"the checkpoint {self.folder} has no tensor {name}: it is incomplete or not of this family"
            ) from None

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(tensor.num_bytes for tensor in self._tensors.values())

    def fingerprint(self) -> str:
        """Changes whenever a file that the build reads changes: names, sizes and modification times."""
        names = sorted(path for path in self.folder.iterdir() if path.is_file())
        stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in names]
        return json.dumps(stats)


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a checkpoint folder, as it is.

    Raises:
        BundleError: the folder or the file is missing or damaged.
    """
    if not folder.is_dir():
        raise BundleError(f"{folder} is not a folder: give a checkpoint folder or a hub id")
    return _read_json(folder / "config.json")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleError(
            f"{path} is missing: {path.parent} is not a Hugging Face checkpoint"
        ) from None
    except ValueError as error:
        raise BundleError(
            f"{path} is not valid JSON ({error}): download the checkpoint again"
        ) from error
    if not isinstance(config, dict):
        raise BundleError(f"{path} is not a JSON object: download the checkpoint again")
    return config


def _check_index(folder: Path, files: list[Path]) -> None:
    """A sharded checkpoint names its files; one that is missing is found here, not at the last tensor."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return
    wanted = set(_read_json(index).get("weight_map", {}).values())
    missing = sorted(wanted - {file.name for file in files})
    if missing:
        raise BundleError(f"{folder} lacks {', '.join(missing)}: download the checkpoint again")


def _read_header(path: Path) -> dict[str, StoredTensor]:
    """Names and places of the tensors of one file, checked against the file's length.

    Source: the format description in the safetensors repository, README, "Format".
    """
    size = path.stat().st_size
    problem = BundleError(
        f"{path} is not a complete safetensors file: download the checkpoint again"
    )
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise problem
        (num_header,) = struct.unpack("<Q", prefix)
        if num_header > min(_MAX_HEADER_BYTES, size - 8):
            raise problem
        try:
            header = json.loads(file.read(num_header))
        except ValueError:
            raise problem from None
    if not isinstance(header, dict):
        raise problem
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        try:
            dtype, shape = entry["dtype"], tuple(map(int, entry["shape"]))
            begin, end = map(int, entry["data_offsets"])
        except (KeyError, TypeError, ValueError):
            raise problem from None
        if dtype not in _DTYPES:
            raise BundleError(
                f"tensor {name} in {path} has dtype {dtype}; this project reads {', '.join(_DTYPES)}"
            )
        num_bytes = math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize
        if begin < 0 or end - begin != num_bytes or 8 + num_header + end > size:
            raise problem
        tensors[name] = StoredTensor(path, 8 + num_header + begin, num_bytes, dtype, shape)
    return tensors
