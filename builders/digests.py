"""What a build is made of, as digests: equal ones need not be built again."""

from __future__ import annotations

import hashlib
import importlib.metadata
from pathlib import Path

_LIBRARIES = ("triton-vlm", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "transformers")


def versions() -> dict[str, str]:
    """Of the libraries that decide what a build writes."""
    return {library: importlib.metadata.version(library) for library in _LIBRARIES}


def code_digest() -> str:
    """Changes whenever the builder itself does."""
    package = Path(__file__).resolve().parent
    return digest(*(path.read_bytes() for path in sorted(package.rglob("*.py"))))


def digest(*parts: object) -> str:
    """Hexadecimal SHA-256 of bytes, or of what `repr` says of anything else."""
    sha = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else repr(part).encode()
        sha.update(len(data).to_bytes(8, "little"))
        sha.update(data)
    return sha.hexdigest()


def file_digest(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
