"""`BuildOptions`: what to build, as the command line says it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from builders.precision import GROUP_SIZES, PRECISIONS, Precision
from python_backend.errors import BundleError
from python_backend.gpu import current_gpu

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_GPU = re.compile(r"sm[0-9]{2,3}")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """One build.

    Attributes:
        model: checkpoint folder or hub id.
        output: the model repository.
        name: of the Triton ensemble; None takes the last part of `model`.
        engine: what runs the graphs: onnxruntime, tensorrt or tensorrt_rtx.
        precision: of the weights, one of `PRECISIONS` of the engine; empty takes the first.
        group_size: weights that share a scale in int4, one of `GROUP_SIZES`; None takes the first.
        gpus: compute capabilities, such as sm89, to build TensorRT-RTX engines for.
        max_seqs: choices generated at once, at most.
        max_model_len: context per request in tokens; None takes the checkpoint's, at most 4096.
        max_images: images in one prompt, at most.
        skip_verify: do not compare with a reference; the model is then refused by default.
    """

    model: str
    output: Path = Path("model_repository")
    name: str | None = None
    engine: str = "onnxruntime"
    precision: str = ""
    group_size: int | None = None
    gpus: tuple[str, ...] = ()
    max_seqs: int = 16
    max_model_len: int | None = None
    max_images: int = 16
    skip_verify: bool = False

    def __post_init__(self) -> None:
        if self.engine not in PRECISIONS:
            raise BundleError(f"engine {self.engine!r} is not one of {', '.join(PRECISIONS)}")
        choices = PRECISIONS[self.engine]
        if not self.precision:
            object.__setattr__(self, "precision", choices[0])
        elif self.precision not in choices:
            raise BundleError(
                f"precision {self.precision!r} is not one of those of {self.engine}: {', '.join(choices)}"
            )
        self._check_group_size()
        self._check_gpus()
        for field in ("max_seqs", "max_images", "max_model_len"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise BundleError(f"{field} is {value}; it must be at least 1")
        if not _NAME.fullmatch(self.triton_name):
            raise BundleError(
                f"{self.triton_name!r} cannot be a Triton model's name: use letters, digits, '.', '_' "
                "and '-', or give --name"
            )

    def _check_group_size(self) -> None:
        if self.group_size is None:
            return
        if self.precision != "int4":
            raise BundleError(f"--group-size is for --precision int4, not {self.precision}")
        if self.group_size not in GROUP_SIZES:
            sizes = ", ".join(map(str, GROUP_SIZES))
            raise BundleError(f"group size {self.group_size} is not one of {sizes}")

    def _check_gpus(self) -> None:
        if self.engine != "tensorrt_rtx":
            if self.gpus:
                raise BundleError(
                    f"--gpu is for the engine tensorrt_rtx; {self.engine} builds for this machine"
                )
            return
        if not self.gpus:
            raise BundleError(
                "tensorrt_rtx builds for GPUs that are named: give --gpu, such as sm89"
            )
        for gpu in self.gpus:
            if not _GPU.fullmatch(gpu):
                raise BundleError(f"GPU {gpu!r} is not a compute capability such as sm89")
            self.number_formats.check_gpu(gpu)

    @property
    def targets(self) -> tuple[str, ...]:
        """GPUs to build engines for; none for ONNX Runtime.

        Raises:
            BundleError: for TensorRT, this machine's GPU is missing or lacks one of the number formats.
        """
        if self.engine != "tensorrt":
            return self.gpus
        gpu = current_gpu()
        self.number_formats.check_gpu(gpu)
        return (gpu,)

    @property
    def number_formats(self) -> Precision:
        """Of the graphs."""
        make = Precision.for_cpu if self.engine == "onnxruntime" else Precision.for_gpu
        return make(self.precision, self.group_size or GROUP_SIZES[0])

    @property
    def triton_name(self) -> str:
        """Name of the ensemble."""
        if self.name is not None:
            return self.name
        path = Path(self.model)
        return path.resolve().name if path.exists() else self.model.rpartition("/")[2]
