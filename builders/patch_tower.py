"""Parts of vision towers that take any number of patches of any number of images: the Qwen-VL line's.

Such a tower's graph takes integers planned on the host (`python_backend.families.qwen2_vl`): patches stay in
their own order, and every attention layer gathers them into equal groups, runs a batch of small attentions,
and gathers back. A group is a window or a whole image; nothing in the graph depends on data.

Dimension letters: N patches, P numbers per patch, G groups, L slots per group, H hidden, D head size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript import nn

from builders.modules import Linear, Op, Weight, constant, rope_inv_freq
from builders.precision import Precision

NORM_EPSILON = 1e-6
"""Of every norm in the towers of Qwen2-VL, Qwen2.5-VL and Qwen3-VL in transformers 5.23; not configurable."""


class Groups:
    """One way to cut the patches into groups that attend among themselves.

    Args:
        op: op builder.
        slots: int64 [G, L], the patch in each slot, -1 where the slot is empty.
        place: int64 [N], where patch n sits in the flattened [G * L].
        cos: [N, D/2] of every patch.
        sin: likewise.
    """

    def __init__(
        self, op: Op, slots: ir.Value, place: ir.Value, cos: ir.Value, sin: ir.Value
    ) -> None:
        self._index, self._place = op.Max(slots, 0), place
        self.rope = op.Gather(cos, self._index), op.Gather(sin, self._index)
        filled = op.Unsqueeze(op.GreaterOrEqual(slots, 0), [1, 2])  # [G, 1, 1, L]
        num_groups, num_slots = op.Shape(slots, start=0, end=1), op.Shape(slots, start=1, end=2)
        square = op.Concat(num_groups, [1], num_slots, num_slots, axis=0)
        self.mask = op.Expand(filled, square)

    def pack(self, op: Op, x: ir.Value) -> ir.Value:
        """[N, H] to [G, L, H]."""
        return op.Gather(x, self._index)

    def unpack(self, op: Op, x: ir.Value, hidden_size: int) -> ir.Value:
        """[G, L, H] to [N, H]."""
        return op.Gather(op.Reshape(x, [-1, hidden_size]), self._place)


class PatchAttention(nn.Module):
    """Attention of every group's patches among themselves; named as in the checkpoints."""

    def __init__(self, precision: Precision, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self._hidden, self._heads = hidden_size, num_heads
        self.qkv = Linear(precision, hidden_size, 3 * hidden_size, bias=True)
        self.proj = Linear(precision, hidden_size, hidden_size, bias=True)

    def forward(self, op: Op, x: ir.Value, groups: Groups) -> ir.Value:
        head_dim = self._hidden // self._heads
        qkv = groups.pack(op, self.qkv(op, x))  # [G, L, 3 * H]
        qkv = op.Transpose(op.Reshape(qkv, [0, 0, 3, self._heads, head_dim]), perm=[2, 0, 3, 1, 4])
        q, k, v = (
            op.Squeeze(part, [0]) for part in op.Split(qkv, axis=0, num_outputs=3, _outputs=3)
        )
        q, k = op.RotaryEmbedding(q, *groups.rope), op.RotaryEmbedding(k, *groups.rope)
        y = op.Transpose(op.Attention(q, k, v, groups.mask), perm=[0, 2, 1, 3])
        return self.proj(op, groups.unpack(op, y, self._hidden))


class PatchBlock(nn.Module):
    """`x += attention(norm1(x)); x += mlp(norm2(x))`."""

    def __init__(
        self,
        precision: Precision,
        hidden_size: int,
        num_heads: int,
        norm: Callable[[Precision, int, float], nn.Module],
        mlp: nn.Module,
    ) -> None:
        super().__init__()
        self.norm1 = norm(precision, hidden_size, NORM_EPSILON)
        self.norm2 = norm(precision, hidden_size, NORM_EPSILON)
        self.attn = PatchAttention(precision, hidden_size, num_heads)
        self.mlp = mlp

    def forward(self, op: Op, x: ir.Value, groups: Groups) -> ir.Value:
        x = op.Add(x, self.attn(op, self.norm1(op, x), groups))
        return op.Add(x, self.mlp(op, self.norm2(op, x)))


class _Projection(nn.Module):
    """The Conv3d whose stride is its kernel: one product per patch."""

    def __init__(
        self, precision: Precision, hidden_size: int, kernel: list[int], *, bias: bool
    ) -> None:
        super().__init__()
        num_in = int(np.prod(kernel))
        self.weight = Weight(
            [num_in, hidden_size],
            precision.compute,
            encode=lambda array: array.reshape(hidden_size, num_in).T,
        )
        self.bias = Weight([hidden_size], precision.compute) if bias else None

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        y = op.MatMul(x, self.weight)
        return y if self.bias is None else op.Add(y, self.bias)


class PatchEmbed(nn.Module):
    """Patches [N, P] to [N, H]."""

    def __init__(
        self, precision: Precision, hidden_size: int, config: dict[str, Any], *, bias: bool = False
    ) -> None:
        super().__init__()
        self.proj = _Projection(precision, hidden_size, patch_shape(config), bias=bias)

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        return self.proj(op, x)


def patch_shape(config: dict[str, Any]) -> list[int]:
    """Channels, frames, rows and columns of a patch; P is their product."""
    patch = config["patch_size"]
    return [config.get("in_channels", 3), config["temporal_patch_size"], patch, patch]


def axial_rope(
    op: Op, position_ids: ir.Value, head_dim: int, compute: ir.DataType
) -> tuple[ir.Value, ir.Value]:
    """Cosine and sine [N, D/2] of (row, column) [N, 2]: the row's angles, then the column's.

    Source: `Qwen2_5_VisionRotaryEmbedding` in transformers 5.23.
    """
    half = head_dim // 2
    inv_freq = constant(op, rope_inv_freq(half, {"rope_theta": 10000.0}), "inv_freq")
    positions = op.Unsqueeze(op.Cast(position_ids, to=ir.DataType.FLOAT), [2])
    angles = op.Reshape(op.Mul(positions, inv_freq), [0, half])
    cos, sin = op.Cos(angles), op.Sin(angles)
    if compute == ir.DataType.FLOAT:
        return cos, sin
    return op.Cast(cos, to=compute), op.Cast(sin, to=compute)
