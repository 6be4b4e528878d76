"""Cross-attention layers of a decoder, and the graph that fills what they read.

The keys and values of a request's images do not change while it runs. A graph of their own computes them once
and writes them into the request's cache row; the decoder's layers only read them. Cross-attention has no
positions, so the host lays the embeddings out such that what a token sees is one range of them.

Dimension letters: X rows up to the last with images, S new tokens per row, C capacity in embeddings,
I embeddings of one request, H hidden, N query heads, K key-value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnxscript import nn

from builders import functions
from builders.graph import declare_inputs, declare_outputs, new_graph, to_model
from builders.modules import GatedMLP, Linear, Op, RMSNorm, Weight, constant
from builders.precision import Precision
from python_backend.spec import GraphSpec, TensorSpec

_END = int(np.iinfo(np.int64).max)


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossAttentionConfig:
    """Shape of a decoder's cross-attention layers.

    Attributes:
        layers: which layers of the decoder they are.
        capacity: C.
        hidden_size: H, of tokens and of image embeddings.
        intermediate_size: of the MLP.
        num_heads: N.
        num_kv_heads: K.
        head_dim: D.
        norm_epsilon: of every RMS norm.
        activation: of the MLP, its name in config.json.
    """

    layers: tuple[int, ...]
    capacity: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_epsilon: float
    activation: str

    def cache_inputs(self, compute: str, rows: str | int) -> tuple[TensorSpec, ...]:
        """The arrays that hold keys and values of images."""
        shape = (rows, self.num_kv_heads, self.capacity, self.head_dim)
        return tuple(
            TensorSpec(f"cross_{part}.{i}", compute, shape)
            for i in self.layers
            for part in ("key", "value")
        )


RANGE_INPUTS = (
    TensorSpec("cross_range", "int64", ("X", "S", 2)),
    TensorSpec("cross_lengths", "int64", ("X",)),
)
"""What each token sees, first and one after the last, equal where it sees nothing; and how many positions of
each row are filled, 0 in a row without images."""


class CrossContext:
    """What all cross-attention layers share.

    A token before the first image sees nothing. Such a token attends to all images of its row nevertheless,
    and the layer's MLP leaves it alone.

    Source: `_prepare_cross_attention_mask` in transformers 5.23 `modeling_mllama.py`.

    Attributes:
        num_rows: int64 [1], X.
        sees: bool [X, S, 1], whether a token sees an image.
        has_images: bool [X, 1, 1], whether its row has any.
        mask: bool [X, 1, S, C].
    """

    def __init__(self, op: Op, capacity: int, seen: ir.Value, lengths: ir.Value) -> None:
        first, after = (
            op.Unsqueeze(bound, [1])  # [X, 1, S, 1]
            for bound in op.Split(seen, axis=2, num_outputs=2, _outputs=2)
        )
        sees = op.Less(first, after)
        self.sees = op.Squeeze(sees, [1])
        self.num_rows = op.Shape(lengths)
        self.has_images = op.Greater(op.Unsqueeze(lengths, [1, 2]), 0)
        after = op.Where(sees, after, op.Unsqueeze(lengths, [1, 2, 3]))
        position = constant(op, np.arange(capacity), "cross_positions")
        self.mask = op.And(op.GreaterOrEqual(position, first), op.Less(position, after))


class _Attention(nn.Module):
    def __init__(self, config: CrossAttentionConfig, precision: Precision) -> None:
        super().__init__()
        self._config, self._precision = config, precision
        size = config.num_heads * config.head_dim
        self.q_proj = Linear(precision, config.hidden_size, size)
        self.o_proj = Linear(precision, size, config.hidden_size)
        self.q_norm = RMSNorm(precision, config.head_dim, config.norm_epsilon)

    def forward(
        self, op: Op, x: ir.Value, images: tuple[ir.Value, ir.Value], mask: ir.Value
    ) -> ir.Value:
        config = self._config
        q = op.Reshape(self.q_proj(op, x), [0, 0, config.num_heads, config.head_dim])
        q = op.Transpose(self.q_norm(op, q), perm=[0, 2, 1, 3])
        scale = np.array(config.head_dim**-0.5, self._precision.compute.numpy())
        q = op.Mul(q, constant(op, scale, "scale"))
        y = functions.masked_attention(op, q, *images, mask, domain=functions.CROSS_DOMAIN)
        y = op.Transpose(y, perm=[0, 2, 1, 3])
        return self.o_proj(op, op.Reshape(y, [0, 0, config.num_heads * config.head_dim]))


class CrossAttentionLayer(nn.Module):
    """Gated attention of the tokens [B, S, H] to the images of their row, and a gated MLP.

    Only rows up to the last with images go through it: none, in a step without images.

    Source: `MllamaCrossAttentionDecoderLayer` in transformers 5.23.
    """

    def __init__(self, config: CrossAttentionConfig, precision: Precision) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(precision, config.hidden_size, config.norm_epsilon)
        self.cross_attn = _Attention(config, precision.attention)
        self.cross_attn_attn_gate = Weight([1], precision.compute)
        self.post_attention_layernorm = RMSNorm(precision, config.hidden_size, config.norm_epsilon)
        self.mlp = GatedMLP(
            precision, config.hidden_size, config.intermediate_size, activation=config.activation
        )
        self.cross_attn_mlp_gate = Weight([1], precision.compute)

    def forward(
        self, op: Op, x: ir.Value, images: tuple[ir.Value, ir.Value], context: CrossContext
    ) -> ir.Value:
        rows = op.Slice(x, [0], context.num_rows, [0])
        others = op.Slice(x, context.num_rows, [_END], [0])
        y = self.cross_attn(op, self.input_layernorm(op, rows), images, context.mask)
        attended = op.Add(rows, op.Mul(op.Tanh(self.cross_attn_attn_gate), y))
        y = self.mlp(op, self.post_attention_layernorm(op, attended))
        y = op.Where(context.sees, y, op.CastLike(0.0, y))
        attended = op.Add(attended, op.Mul(op.Tanh(self.cross_attn_mlp_gate), y))
        return op.Concat(op.Where(context.has_images, attended, rows), others, axis=0)


class _KeysValues(nn.Module):
    """Keys and values [1, K, I, D] of the embeddings [1, I, H] in one layer, named as in the checkpoint."""

    def __init__(self, config: CrossAttentionConfig, precision: Precision, layer: int) -> None:
        super().__init__(f"model.layers.{layer}.cross_attn")
        self._shape = [0, 0, config.num_kv_heads, config.head_dim]
        size = config.num_kv_heads * config.head_dim
        self.k_proj = Linear(precision, config.hidden_size, size)
        self.v_proj = Linear(precision, config.hidden_size, size)
        self.k_norm = RMSNorm(precision, config.head_dim, config.norm_epsilon)

    def forward(self, op: Op, embeds: ir.Value) -> Sequence[ir.Value]:
        keys = self.k_norm(op, op.Reshape(self.k_proj(op, embeds), self._shape))
        values = op.Reshape(self.v_proj(op, embeds), self._shape)
        return [op.Transpose(part, perm=[0, 2, 1, 3]) for part in (keys, values)]


def build_cross_attention(
    config: CrossAttentionConfig, precision: Precision
) -> tuple[ir.Model, GraphSpec]:
    """The graph that writes keys and values of a request's images into its cache row, and its contract."""
    compute = precision.compute.numpy().name
    cache = config.cache_inputs(compute, 1)
    outputs = tuple(TensorSpec(f"filled_{t.name}", t.dtype, t.shape) for t in cache)
    spec = GraphSpec(
        name="cross_attention",
        inputs=(TensorSpec("image_embeds", "float32", ("I", config.hidden_size)), *cache),
        outputs=outputs,
        aliases={output.name: tensor.name for output, tensor in zip(outputs, cache, strict=True)},
    )
    builder = new_graph(spec)
    feeds, op = declare_inputs(builder, spec, precision.compute), builder.op
    embeds = op.Unsqueeze(feeds["image_embeds"], [0])
    updates = [
        u for i in config.layers for u in _KeysValues(config, precision.attention, i)(op, embeds)
    ]
    start = constant(op, np.zeros(1, np.int64), "start")
    filled = [
        functions.cache_update(op, feeds[tensor.name], update, start)
        for tensor, update in zip(cache, updates, strict=True)
    ]
    declare_outputs(builder, spec, filled)
    return to_model(builder, [functions.cache_update_function()]), spec
