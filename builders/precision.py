"""`Precision`: the number formats of a graph, and how its weights get into the file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

BLOCK_SIZE = 32
"""Input features that share one scale: the block both ONNX Runtime and TensorRT have kernels for."""

CPU_WEIGHT_BITS: Mapping[str, int | None] = {"fp32": None, "int8": 8, "int4": 4}
"""`--precision` for the CPU, and the bits of its linear layers' weights."""

_GPU_WEIGHT_BITS: Mapping[str, int | None] = {"bf16": None, "fp16": None, "int8": 8, "int4": 4}

UNQUANTIZED = ("fp32", "bf16", "fp16")
"""`--precision` that leaves weights as they are: the only ones for checkpoints that are quantized already."""

PRECISIONS: Mapping[str, tuple[str, ...]] = {
    "onnxruntime": tuple(CPU_WEIGHT_BITS),
    "tensorrt": tuple(_GPU_WEIGHT_BITS),
    "tensorrt_rtx": tuple(_GPU_WEIGHT_BITS),
}
"""`--engine`, and the values of `--precision` for it; the first one is the default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """Number formats of one graph.

    Attributes:
        compute: dtype of activations, of the KV cache and of unquantized weights.
        weight_bits: 4 or 8 for block weight-only quantization of the linear layers, None for none.
        for_tensorrt: whether quantized weights are as TensorRT takes them: scales positive, and embedding
            tables as they are, because it dequantizes constants and not the rows that a prompt picks.
        linked: dtype of the checkpoint's weights, to leave them in the checkpoint's own files and
            point the graph at them; None to write them transposed and cast. Linking is for TensorRT
            builds and tests; ONNX Runtime would hold the folded copies in memory.
    """

    compute: ir.DataType
    weight_bits: int | None = None
    for_tensorrt: bool = False
    linked: ir.DataType | None = None

    @property
    def stored(self) -> ir.DataType:
        """Dtype of unquantized weights in the file."""
        return self.linked or self.compute

    @classmethod
    def for_cpu(cls, name: str) -> Precision:
        """What `--precision` means for ONNX Runtime on a CPU: fp32, int8 or int4 weights, fp32 compute."""
        return cls(compute=ir.DataType.FLOAT, weight_bits=CPU_WEIGHT_BITS[name])

    @classmethod
    def for_gpu(cls, name: str) -> Precision:
        """What `--precision` means for TensorRT: bf16, fp16, or int8 or int4 weights with bf16 compute."""
        return cls(
            compute=ir.DataType.FLOAT16 if name == "fp16" else ir.DataType.BFLOAT16,
            weight_bits=_GPU_WEIGHT_BITS[name],
            for_tensorrt=True,
        )

    @property
    def unquantized(self) -> Precision:
        """The same without weight quantization: for parts too small or too sensitive to quantize."""
        return Precision(compute=self.compute, linked=self.linked)
