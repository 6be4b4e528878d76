"""The layers that decoders and vision towers are made of, written once on `onnxscript.nn`.

A module holds no numbers. Its `Weight`s say which checkpoint tensor they come from and how it is
laid out; `fill_weights` attaches lazy tensors that are read when the file is written.

Dimension letters: B rows, S tokens, N query heads, K key-value heads, D head size, C cache
capacity.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript import nn

from builders.checkpoint import FLOATS, Checkpoint, StoredTensor
from builders.precision import INT8_BLOCK_SIZE, Precision
from builders.quantize import Quantization, block_quantize
from python_backend.errors import BundleError

Op = Any
"""`onnxscript`'s op builder: `op.MatMul(x, w)` adds a node."""

STORED_DTYPES = {
    "F32": ir.DataType.FLOAT,
    "F16": ir.DataType.FLOAT16,
    "BF16": ir.DataType.BFLOAT16,
}
"""Safetensors dtypes that a graph can point at."""


class Weight(nn.Parameter):
    """A graph initializer that is filled from the checkpoint.

    Args:
        shape: as the graph uses it.
        dtype: as the graph stores it.
        encode: from the checkpoint's array to the array of `shape` and `dtype`; None means the
            checkpoint's tensor as it is, cast to `dtype`.
        source: last part of the checkpoint's tensor name, when it is not this attribute's name.
    """

    def __init__(
        self,
        shape: list[int],
        dtype: ir.DataType,
        *,
        encode: Callable[[np.ndarray], np.ndarray] | None = None,
        source: str | None = None,
    ) -> None:
        super().__init__(shape, dtype=dtype)
        self._stored_shape, self._stored_dtype = shape, dtype
        self._encode = encode
        self.source = source

    def fill(self, stored: StoredTensor) -> None:
        """Attach the tensor of the checkpoint that this weight is made of, without reading it."""
        shape, dtype, name = self._stored_shape, self._stored_dtype, self.name or ""
        if stored.dtype not in FLOATS:
            raise BundleError(
                f"tensor {name} has dtype {stored.dtype}, and config.json does not say what that means: "
                "give both as they were published"
            )
        if self._encode is None and list(stored.shape) != shape:
            raise BundleError(
                f"tensor {name} has shape {list(stored.shape)}, the config asks for {shape}: "
                "config.json and weights do not belong together"
            )
        if self._encode is None and STORED_DTYPES.get(stored.dtype) == dtype:
            self.const_value = ir.ExternalTensor(
                stored.path.name,
                stored.offset,
                stored.num_bytes,
                dtype,
                shape=ir.Shape(shape),
                name=name,
                base_dir=str(stored.path.parent),
            )
            return

        def read() -> ir.TensorProtocol:
            array = stored.array()
            array = array if self._encode is None else self._encode(array)
            if list(array.shape) != shape:
                raise BundleError(
                    f"tensor {name} becomes {list(array.shape)}, the config asks for {shape}: "
                    "config.json and weights do not belong together"
                )
            return ir.tensor(np.ascontiguousarray(array.astype(dtype.numpy(), copy=False)), dtype)

        self.const_value = ir.LazyTensor(read, dtype=dtype, shape=ir.Shape(shape), name=name)


def fill_weights(
    graph: ir.Graph, checkpoint: Checkpoint, checkpoint_names: Callable[[str], tuple[str, ...]]
) -> None:
    """Attach the checkpoint's tensors to every `Weight` of `graph`.

    Args:
        graph: built from modules whose parameter paths follow the checkpoint's names.
        checkpoint: where they come from.
        checkpoint_names: from a parameter's path to the names its tensor may have; the first that
            the checkpoint has is taken.
    """
    for path, value in graph.initializers.items():
        if isinstance(value, Weight):
            if value.source is not None:
                path = path.rpartition(".")[0] + "." + value.source
            names = checkpoint_names(path)
            value.fill(checkpoint[next((name for name in names if name in checkpoint), names[0])])


def constant(op: Op, array: np.ndarray, name: str) -> ir.Value:
    """A named array inside a module; onnxscript 0.7.2 cannot promote numpy arrays by itself."""
    return op.initializer(ir.tensor(array), name=name)


class Linear(nn.Module):
    """`x @ weight.T + bias` with the checkpoint's `weight` [out, in] and `bias` [out].

    The weight is written transposed, [in, out], which is what MatMul reads; a quantized one has scales.
    """

    def __init__(
        self, precision: Precision, num_in: int, num_out: int, *, bias: bool = False
    ) -> None:
        super().__init__()
        self._quantization = quantization = Quantization.of(precision)
        if quantization is not None:
            self.weight = Weight(
                [num_in, num_out],
                quantization.dtype,
                encode=lambda array: quantization.quantize(array)[0].T,
            )
            self.weight_scale = Weight(
                quantization.scale_shape(num_in, num_out),
                precision.compute,
                encode=lambda array: quantization.quantize(array)[1].T,
                source="weight",
            )
        else:
            self.weight = Weight([num_in, num_out], precision.compute, encode=lambda array: array.T)
        self.bias = Weight([num_out], precision.compute) if bias else None

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        if self._quantization is not None:
            matrix = op.DequantizeLinear(
                self.weight, self.weight_scale, **self._quantization.attributes
            )
        else:
            matrix = self.weight
        y = op.MatMul(x, matrix)
        return y if self.bias is None else op.Add(y, self.bias)


class Embedding(nn.Module):
    """Rows of the embedding table; 8-bit rows under weight quantization (a table is all memory)."""

    def __init__(self, precision: Precision, num_rows: int, hidden_size: int) -> None:
        super().__init__()
        self._quantized = precision.weight_bits is not None and not precision.for_tensorrt
        if self._quantized:
            self.weight = Weight(
                [num_rows, hidden_size],
                ir.DataType.INT8,
                encode=lambda array: block_quantize(array, 8, INT8_BLOCK_SIZE)[0],
            )
            self.weight_scale = Weight(
                [num_rows, -(-hidden_size // INT8_BLOCK_SIZE)],
                precision.compute,
                encode=lambda array: block_quantize(array, 8, INT8_BLOCK_SIZE)[1],
                source="weight",
            )
        else:
            self.weight = Weight([num_rows, hidden_size], precision.compute)

    def forward(self, op: Op, ids: ir.Value) -> ir.Value:
        rows = op.Gather(self.weight, ids, axis=0)
        if not self._quantized:
            return rows
        scales = op.Gather(self.weight_scale, ids, axis=0)
        return op.DequantizeLinear(rows, scales, axis=-1, block_size=INT8_BLOCK_SIZE)

    def project(self, op: Op, x: ir.Value) -> ir.Value:
        """`x @ weight.T`, the output head of a model with tied embeddings: x [M, hidden_size]."""
        return op.Gemm(x, self.weight, transB=1)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, scaled by the checkpoint's weight plus `offset`."""

    def __init__(
        self, precision: Precision, size: int, epsilon: float, offset: float = 0.0
    ) -> None:
        super().__init__()
        self._epsilon = epsilon
        if offset:
            self.weight = Weight(
                [size],
                precision.compute,
                encode=lambda array: array.astype(np.float32) + np.float32(offset),
            )
        else:
            self.weight = Weight([size], precision.compute)

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        return op.RMSNormalization(x, self.weight, axis=-1, epsilon=self._epsilon)


class LayerNorm(nn.Module):
    """Mean and variance norm over the last axis, with weight and bias."""

    def __init__(self, precision: Precision, size: int, epsilon: float) -> None:
        super().__init__()
        self._epsilon = epsilon
        self.weight, self.bias = (
            Weight([size], precision.compute),
            Weight([size], precision.compute),
        )

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        return op.LayerNormalization(x, self.weight, self.bias, axis=-1, epsilon=self._epsilon)


def activate(op: Op, x: ir.Value, name: str) -> ir.Value:
    """An activation by its name in config.json."""
    if name == "silu":
        return op.Mul(x, op.Sigmoid(x))
    if name == "gelu":
        return op.Gelu(x)
    if name in ("gelu_pytorch_tanh", "gelu_new"):
        return op.Gelu(x, approximate="tanh")
    if name == "quick_gelu":
        return op.Mul(x, op.Sigmoid(op.Mul(x, op.CastLike(1.702, x))))
    raise BundleError(
        f"activation {name!r} is not supported; supported are silu, gelu, gelu_pytorch_tanh, quick_gelu"
    )


class MLP(nn.Module):
    """`fc2(activation(fc1(x)))`, under the names the checkpoint has for the two."""

    def __init__(
        self,
        precision: Precision,
        hidden_size: int,
        intermediate_size: int,
        *,
        activation: str,
        names: tuple[str, str] = ("fc1", "fc2"),
    ) -> None:
        super().__init__()
        self._activation, self._names = activation, names
        setattr(self, names[0], Linear(precision, hidden_size, intermediate_size, bias=True))
        setattr(self, names[1], Linear(precision, intermediate_size, hidden_size, bias=True))

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        first, second = (getattr(self, name) for name in self._names)
        return second(op, activate(op, first(op, x), self._activation))


class GatedMLP(nn.Module):
    """`down(activation(gate(x)) * up(x))`."""

    def __init__(
        self,
        precision: Precision,
        hidden_size: int,
        intermediate_size: int,
        *,
        activation: str = "silu",
        bias: bool = False,
    ) -> None:
        super().__init__()
        self._activation = activation
        self.gate_proj = Linear(precision, hidden_size, intermediate_size, bias=bias)
        self.up_proj = Linear(precision, hidden_size, intermediate_size, bias=bias)
        self.down_proj = Linear(precision, intermediate_size, hidden_size, bias=bias)

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        gate = activate(op, self.gate_proj(op, x), self._activation)
        return self.down_proj(op, op.Mul(gate, self.up_proj(op, x)))


class Rotary(nn.Module):
    """cos and sin [B, S, D/2] of the tokens' positions.

    Args:
        precision: of cos and sin.
        inv_freq: float32 [D/2], the angle per unit of position of each frequency.
        axes: for M-RoPE, which position axis each frequency reads; None for plain positions.
    """

    def __init__(self, precision: Precision, inv_freq: np.ndarray, axes: np.ndarray | None) -> None:
        super().__init__()
        self._compute, self._inv_freq, self._axes = precision.compute, inv_freq, axes

    def forward(self, op: Op, position_ids: ir.Value) -> tuple[ir.Value, ir.Value]:
        positions = op.Cast(position_ids, to=ir.DataType.FLOAT)
        if self._axes is None:
            positions = op.Unsqueeze(positions, [2])
        else:
            axes = constant(op, self._axes.astype(np.int64), "axes")
            positions = op.Transpose(op.Gather(positions, axes, axis=0), perm=[1, 2, 0])
        angles = op.Mul(positions, constant(op, self._inv_freq, "inv_freq"))
        cos, sin = op.Cos(angles), op.Sin(angles)
        if self._compute == ir.DataType.FLOAT:
            return cos, sin
        return op.Cast(cos, to=self._compute), op.Cast(sin, to=self._compute)


def rope_inv_freq(head_dim: int, rope: Mapping[str, Any]) -> np.ndarray:
    """The angle per unit of position of each frequency, float32 [head_dim/2].

    Args:
        head_dim: of what is rotated.
        rope: `rope_parameters` of a Hugging Face config.

    Raises:
        BundleError: its kind is not written here.

    Source: `ROPE_INIT_FUNCTIONS` in transformers 5.23 `modeling_rope_utils.py`.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    inv_freq = 1.0 / np.float32(rope["rope_theta"]) ** exponents
    kind = rope.get("rope_type", "default")
    if kind == "linear":
        inv_freq = inv_freq / np.float32(rope["factor"])
    elif kind == "llama3":
        inv_freq = _llama3_inv_freq(inv_freq, rope)
    elif kind != "default":
        raise BundleError(
            f"rope type {kind!r} is not supported; supported are default, linear, llama3"
        )
    return inv_freq.astype(np.float32)


def _llama3_inv_freq(inv_freq: np.ndarray, rope: Mapping[str, Any]) -> np.ndarray:
    """Slow frequencies are stretched by `factor`, fast ones kept, those between blended."""
    context, factor = rope["original_max_position_embeddings"], np.float32(rope["factor"])
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    wavelength = 2 * np.pi / inv_freq
    kept = np.clip((context / wavelength - low) / (high - low), 0, 1)
    blended: np.ndarray = (1 - kept) * inv_freq / factor + kept * inv_freq
    return blended
