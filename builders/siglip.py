"""SigLIP: a plain vision transformer over square pictures of one size, `tiles`.

Dimension letters: T tiles, C channels, R rows (and columns) of pixels, N patches of a tile, H hidden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript import nn

from builders.modules import MLP, LayerNorm, Linear, Op, Weight, constant
from builders.precision import Precision


class PatchEmbedding(nn.Module):
    """The Conv2d whose stride is its kernel: one product per patch of square pictures."""

    def __init__(
        self, config: Mapping[str, Any], precision: Precision, *, bias: bool = True
    ) -> None:
        super().__init__()
        self._channels, self._patch = config.get("num_channels", 3), config["patch_size"]
        self._side = config["image_size"] // self._patch
        hidden, num_in = config["hidden_size"], self._channels * self._patch**2
        self._num_in = num_in
        self.weight = Weight(
            [num_in, hidden],
            precision.compute,
            encode=lambda array: array.reshape(hidden, num_in).T,
        )
        self.bias = Weight([hidden], precision.compute) if bias else None

    def forward(self, op: Op, pixels: ir.Value) -> ir.Value:
        """[T, C, R, R] to [T, N, H]."""
        side, patch = self._side, self._patch
        x = op.Reshape(pixels, [0, self._channels, side, patch, side, patch])
        x = op.Reshape(op.Transpose(x, perm=[0, 2, 4, 1, 3, 5]), [0, side * side, self._num_in])
        y = op.MatMul(x, self.weight)
        return y if self.bias is None else op.Add(y, self.bias)


class _Table(nn.Module):
    def __init__(self, precision: Precision, num_rows: int, size: int) -> None:
        super().__init__()
        self.weight = Weight([num_rows, size], precision.compute)

    def forward(self, op: Op) -> ir.Value:
        return self.weight


class _Embeddings(nn.Module):
    def __init__(
        self, config: Mapping[str, Any], precision: Precision, position_ids: np.ndarray | None
    ) -> None:
        super().__init__()
        num_patches = (config["image_size"] // config["patch_size"]) ** 2
        self._position_ids = position_ids
        self.patch_embedding = PatchEmbedding(config, precision)
        self.position_embedding = _Table(precision, num_patches, config["hidden_size"])

    def forward(self, op: Op, pixels: ir.Value) -> ir.Value:
        positions = self.position_embedding(op)
        if self._position_ids is not None:
            positions = op.Gather(positions, constant(op, self._position_ids, "position_ids"))
        return op.Add(self.patch_embedding(op, pixels), positions)


def attend(
    op: Op, parts: Sequence[ir.Value], num_heads: int, hidden_size: int, *mask: ir.Value
) -> ir.Value:
    """Attention of queries, keys and values [T, N, H] in heads, [T, N, H], to all that `mask` allows."""

    def heads(y: ir.Value) -> ir.Value:
        y = op.Reshape(y, [0, 0, num_heads, hidden_size // num_heads])
        return op.Transpose(y, perm=[0, 2, 1, 3])

    y = op.Transpose(op.Attention(*map(heads, parts), *mask), perm=[0, 2, 1, 3])
    return op.Reshape(y, [0, 0, hidden_size])


class _Attention(nn.Module):
    def __init__(self, config: Mapping[str, Any], precision: Precision) -> None:
        super().__init__()
        self._hidden, self._heads = config["hidden_size"], config["num_attention_heads"]
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            Linear(precision, self._hidden, self._hidden, bias=True) for _ in range(4)
        )

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        parts = [proj(op, x) for proj in (self.q_proj, self.k_proj, self.v_proj)]
        return self.out_proj(op, attend(op, parts, self._heads, self._hidden))


class _Layer(nn.Module):
    def __init__(self, config: Mapping[str, Any], precision: Precision) -> None:
        super().__init__()
        hidden, epsilon = config["hidden_size"], config["layer_norm_eps"]
        self.layer_norm1 = LayerNorm(precision, hidden, epsilon)
        self.layer_norm2 = LayerNorm(precision, hidden, epsilon)
        self.self_attn = _Attention(config, precision)
        self.mlp = MLP(
            precision, hidden, config["intermediate_size"], activation=config["hidden_act"]
        )

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        x = op.Add(x, self.self_attn(op, self.layer_norm1(op, x)))
        return op.Add(x, self.mlp(op, self.layer_norm2(op, x)))


class _Encoder(nn.Module):
    def __init__(self, config: Mapping[str, Any], precision: Precision, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([_Layer(config, precision) for _ in range(num_layers)])

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        for layer in self.layers:
            x = layer(op, x)
        return x


class SiglipTower(nn.Module):
    """Tiles [T, C, R, R] to features [T, N, H].

    Args:
        name: of the tower in the graph's parameter paths.
        config: the Hugging Face vision config.
        precision: of weights and computation.
        num_layers: how many layers run; None for all of them.
        has_norm: whether the last norm is applied.
        position_ids: int64 [N], the position that each patch has; None for their order.
    """

    def __init__(
        self,
        name: str,
        config: Mapping[str, Any],
        precision: Precision,
        *,
        num_layers: int | None = None,
        has_norm: bool,
        position_ids: np.ndarray | None = None,
    ) -> None:
        super().__init__(name)
        if num_layers is None:
            num_layers = config["num_hidden_layers"]
        self.embeddings = _Embeddings(config, precision, position_ids)
        self.encoder = _Encoder(config, precision, num_layers)
        self._has_norm = has_norm
        if has_norm:
            self.post_layernorm = LayerNorm(
                precision, config["hidden_size"], config["layer_norm_eps"]
            )

    def forward(self, op: Op, pixels: ir.Value) -> ir.Value:
        x = self.encoder(op, self.embeddings(op, pixels))
        return self.post_layernorm(op, x) if self._has_norm else x
