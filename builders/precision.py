"""`Precision`: the number formats of a graph, and how its weights get into the file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from python_backend.errors import BundleError

INT8_BLOCK_SIZE = 128
"""8-bit weights of an output feature that share a scale on a CPU.

With 32 prompts would take 1.35 times as long, and a product be off by 0.8 instead of 0.9%
(docs/performance.md)."""

GROUP_SIZES = (128, 64, 32)
"""`--group-size`: the same of 4-bit weights. Smaller ones are slower and more exact; the first is taken."""

_CPU_WEIGHT_BITS: Mapping[str, int | None] = {"fp32": None, "int8": 8, "int4": 4}
_GPU_WEIGHT_BITS: Mapping[str, int | None] = {
    "bf16": None,
    "fp16": None,
    "fp8": 8,
    "int8": 8,
    "int4": 4,
}

_MIN_FLOAT8_GPU = 89
"""Compute capability of the first GPUs that convert 8-bit floats; TensorRT builds for no earlier one."""

UNQUANTIZED = ("fp32", "bf16", "fp16")
"""`--precision` that leaves weights as they are: the only ones for checkpoints that are quantized already."""

PRECISIONS: Mapping[str, tuple[str, ...]] = {
    "onnxruntime": tuple(_CPU_WEIGHT_BITS),
    "tensorrt": tuple(_GPU_WEIGHT_BITS),
    "tensorrt_rtx": tuple(_GPU_WEIGHT_BITS),
}
"""`--engine`, and the values of `--precision` for it; the first one is the default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """Number formats of one graph.

    Attributes:
        compute: dtype of activations, of the KV cache and of unquantized weights.
        weight_bits: 4 or 8 for weight-only quantization of the linear layers, None for none. Of 4 bits are
            those of MLPs only: see `attention` and `head`.
        group_size: 4-bit weights of an output feature that share a scale.
        is_float8: whether 8-bit weights are floats (E4M3) and not integers.
        for_tensorrt: whether quantized weights are as TensorRT takes them: scales positive, and embedding
            tables as they are, because it dequantizes constants and not the rows that a prompt picks.
    """

    compute: ir.DataType
    weight_bits: int | None = None
    group_size: int = GROUP_SIZES[0]
    is_float8: bool = False
    for_tensorrt: bool = False

    @classmethod
    def for_cpu(cls, name: str, group_size: int = GROUP_SIZES[0]) -> Precision:
        """What `--precision` means for ONNX Runtime on a CPU: fp32, int8 or int4 weights, fp32 compute."""
        weight_bits = _CPU_WEIGHT_BITS[name]
        return cls(compute=ir.DataType.FLOAT, weight_bits=weight_bits, group_size=group_size)

    @classmethod
    def for_gpu(cls, name: str, group_size: int = GROUP_SIZES[0]) -> Precision:
        """What `--precision` means for TensorRT: bf16, fp16, or fewer bits per weight with bf16 compute."""
        return cls(
            compute=ir.DataType.FLOAT16 if name == "fp16" else ir.DataType.BFLOAT16,
            weight_bits=_GPU_WEIGHT_BITS[name],
            group_size=group_size,
            is_float8=name == "fp8",
            for_tensorrt=True,
        )

    @property
    def tower(self) -> Precision:
        """Of vision encoders: 8-bit integers on a CPU if there are to be fewer bits at all.

        A GPU computes a picture in less time than it needs for anything else.
        """
        return self.unquantized if self.for_tensorrt else self.head

    @property
    def computed_in_fp32(self) -> Precision:
        """The same weights, rounded as they are, for a machine that computes in fp32 only."""
        return replace(self, compute=ir.DataType.FLOAT)

    @property
    def head(self) -> Precision:
        """Of the output head: 8-bit integers at least, because it decides between neighbouring tokens."""
        if self.weight_bits is None:
            return self
        return replace(self, weight_bits=8, is_float8=False)

    @property
    def attention(self) -> Precision:
        """Of a decoder's projections of queries, keys, values and attended values: 8-bit integers at least.

        They are an eighth of the weights. With groups of 128 a trained model loses less than with all of
        its weights in groups of 32, which are slower and no smaller (docs/performance.md).
        """
        return self.head if self.weight_bits == 4 else self

    def check_gpu(self, gpu: str) -> None:
        """Refuse a GPU that lacks one of the number formats.

        Args:
            gpu: compute capability, such as sm89.

        Raises:
            BundleError: it does.
        """
        if self.is_float8 and int(gpu.removeprefix("sm")) < _MIN_FLOAT8_GPU:
            raise BundleError(
                f"{gpu} has no 8-bit floats, which came with sm{_MIN_FLOAT8_GPU}: give --precision int8"
            )

    @property
    def unquantized(self) -> Precision:
        """The same without weight quantization: for parts too small or too sensitive to quantize."""
        return Precision(compute=self.compute)
