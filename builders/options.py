"""`BuildOptions`: what to build, as the command line says it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from builders.precision import CPU_WEIGHT_BITS
from python_backend.errors import BundleError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """One build.

    Attributes:
        model: checkpoint folder or hub id.
        output: the model repository.
        name: of the Triton ensemble; None takes the last part of `model`.
        precision: of the decoder: fp32, int8 or int4 weights.
        max_seqs: choices generated at once, at most.
        max_model_len: context per request in tokens; None takes the checkpoint's, at most 4096.
        max_images: images in one prompt, at most.
        skip_verify: do not compare with a reference; the model is then refused by default.
    """

    model: str
    output: Path = Path("model_repository")
    name: str | None = None
    precision: str = "fp32"
    max_seqs: int = 16
    max_model_len: int | None = None
    max_images: int = 16
    skip_verify: bool = False

    def __post_init__(self) -> None:
        if self.precision not in CPU_WEIGHT_BITS:
            choices = ", ".join(CPU_WEIGHT_BITS)
            raise BundleError(f"precision {self.precision!r} is not one of {choices}")
        for field in ("max_seqs", "max_images", "max_model_len"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise BundleError(f"{field} is {value}; it must be at least 1")
        if not _NAME.fullmatch(self.triton_name):
            raise BundleError(
                f"{self.triton_name!r} cannot be a Triton model's name: use letters, digits, '.', '_' "
                "and '-', or give --name"
            )

    @property
    def triton_name(self) -> str:
        """Name of the ensemble."""
        if self.name is not None:
            return self.name
        path = Path(self.model)
        return path.resolve().name if path.exists() else self.model.rpartition("/")[2]
