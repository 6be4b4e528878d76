"""The decoder graph: prompt and generated tokens to logits, over an external KV cache.

The contract (B rows, S new tokens per row, I image-embedding rows, H hidden, K kv heads, C
capacity, D head size, V vocabulary, L logits per row) is the table in docs/architecture.md;
`decoder_spec` declares it, `build_decoder` fulfils it for every family of the common kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript import nn

from builders import functions
from builders.cross_attention import (
    RANGE_INPUTS,
    CrossAttentionConfig,
    CrossAttentionLayer,
    CrossContext,
)
from builders.graph import declare_inputs, declare_outputs, new_graph, to_model
from builders.masks import masks
from builders.modules import Embedding, GatedMLP, Linear, Op, RMSNorm, Rotary, rope_inv_freq
from builders.precision import Precision
from python_backend.errors import BundleError
from python_backend.spec import GraphSpec, TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """Shape of a decoder.

    Attributes:
        hidden_size: H.
        intermediate_size: of the MLP.
        num_layers: decoder layers.
        num_heads: query heads.
        num_kv_heads: key-value heads.
        head_dim: D.
        vocab_size: V.
        norm_epsilon: of every RMS norm.
        inv_freq: float32 [D/2], rotary frequencies.
        rope_axes: int64 [D/2] for M-RoPE, which position axis each frequency reads; else None.
        qkv_bias: whether q, k and v projections have a bias.
        tied_embeddings: whether the output head is the embedding table.
        max_model_len: C.
        activation: of the MLP, its name in config.json.
        o_bias: whether the attention's output projection has a bias.
        has_qk_norm: whether every head's query and key are normed before they are rotated.
        num_deepstack_layers: first layers that add a part of the image embedding of their own to its token.
        norm_offset: added to the weight of every norm.
        has_post_norms: whether what attention and MLP give is normed before it is added.
        attention_scale: of the scores; None for D^-1/2.
        embedding_scale: of the tokens' embeddings; image embeddings come as they are.
        sees_whole_images: whether the tokens of an image see each other both ways.
        sliding_layers: layers that see the last `sliding_window` positions only, the token's own included,
            and rotate by `local_inv_freq`.
        sliding_window: of those layers.
        local_inv_freq: float32 [D/2], or None.
        num_embeddings: rows of the embedding table; None for V.
        cross_attention: layers that attend to the images instead of the text; image embeddings then take no
            token's place. None if there are none.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    norm_epsilon: float
    inv_freq: np.ndarray
    rope_axes: np.ndarray | None
    qkv_bias: bool
    tied_embeddings: bool
    max_model_len: int
    activation: str = "silu"
    o_bias: bool = False
    has_qk_norm: bool = False
    num_deepstack_layers: int = 0
    norm_offset: float = 0.0
    has_post_norms: bool = False
    attention_scale: float | None = None
    embedding_scale: float = 1.0
    sees_whole_images: bool = False
    sliding_layers: frozenset[int] = frozenset()
    sliding_window: int = 0
    local_inv_freq: np.ndarray | None = None
    num_embeddings: int | None = None
    cross_attention: CrossAttentionConfig | None = None

    @property
    def cached_layers(self) -> list[int]:
        """Layers that attend to the text."""
        cross = self.cross_attention.layers if self.cross_attention else ()
        return [i for i in range(self.num_layers) if i not in cross]

    @property
    def has_mask(self) -> bool:
        """Whether who sees whom is more than the order of the tokens."""
        return self.sees_whole_images or bool(self.sliding_layers)

    @property
    def embeds_size(self) -> int:
        """Numbers of one image embedding."""
        return self.hidden_size * (1 + self.num_deepstack_layers)


def common_config(
    text: Mapping[str, Any], max_model_len: int, *, tied_embeddings: bool, qkv_bias: bool
) -> DecoderConfig:
    """The decoder of a Hugging Face text config of the kind that Llama began.

    Raises:
        BundleError: it has something that no graph here computes.
    """
    if "sliding_attention" in (text.get("layer_types") or ()):
        raise BundleError("this checkpoint uses sliding-window attention, which is not supported")
    rope = text["rope_parameters"]
    head_dim = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
    return DecoderConfig(
        hidden_size=text["hidden_size"],
        intermediate_size=text["intermediate_size"],
        num_layers=text["num_hidden_layers"],
        num_heads=text["num_attention_heads"],
        num_kv_heads=text["num_key_value_heads"],
        head_dim=head_dim,
        vocab_size=text["vocab_size"],
        norm_epsilon=text["rms_norm_eps"],
        inv_freq=rope_inv_freq(head_dim, rope),
        rope_axes=None,
        qkv_bias=qkv_bias,
        tied_embeddings=tied_embeddings,
        max_model_len=max_model_len,
        activation=text["hidden_act"],
    )


def decoder_spec(config: DecoderConfig, compute: str) -> GraphSpec:
    """The decoder's contract; `compute` is the dtype of the KV cache."""
    positions: tuple[str | int, ...] = ("B", "S") if config.rope_axes is None else (3, "B", "S")
    cache = ("B", config.num_kv_heads, config.max_model_len, config.head_dim)
    names = [f"{part}.{i}" for i in config.cached_layers for part in ("key", "value")]
    images: tuple[TensorSpec, ...] = (
        TensorSpec("image_index", "int64", ("B", "S")),
        TensorSpec("image_embeds", "float32", ("I", config.embeds_size)),
    )
    cross_cache: tuple[TensorSpec, ...] = ()
    if config.cross_attention is not None:
        images, cross_cache = RANGE_INPUTS, config.cross_attention.cache_inputs(compute, "X")
    return GraphSpec(
        name="decoder",
        inputs=(
            TensorSpec("input_ids", "int64", ("B", "S")),
            *images,
            TensorSpec("position_ids", "int64", positions),
            TensorSpec("write_indices", "int64", ("B",)),
            TensorSpec("kv_lengths", "int32", ("B",)),
            TensorSpec("logits_index", "int64", ("B", "L")),
            *(TensorSpec(f"past_{name}", compute, cache) for name in names),
            *cross_cache,
        ),
        outputs=(
            TensorSpec("logits", "float32", ("B", "L", config.vocab_size)),
            *(TensorSpec(f"present_{name}", compute, cache) for name in names),
        ),
        aliases={f"present_{name}": f"past_{name}" for name in names},
        takes_whole_images=config.sees_whole_images,
        cross_inputs=tuple(tensor.name for tensor in cross_cache),
        num_token_ids=config.num_embeddings,
    )


@dataclass(frozen=True, slots=True)
class _Context:
    """What a layer needs beside its input.

    Attributes:
        rope: cos and sin [B, S, D/2].
        write_indices: int64 [B].
        kv_lengths: int32 [B].
        mask: bool [B, 1, S, C], None where the order of the tokens and `kv_lengths` say it all.
        index: int64 [B, L, 1], the tokens that need more than keys and values; None for all.
    """

    rope: tuple[ir.Value, ir.Value]
    write_indices: ir.Value
    kv_lengths: ir.Value
    mask: ir.Value | None
    index: ir.Value | None = None


class _Attention(nn.Module):
    def __init__(self, config: DecoderConfig, precision: Precision) -> None:
        super().__init__()
        self._config, self._precision = config, precision
        hidden, head_dim = config.hidden_size, config.head_dim
        num_q, num_kv = config.num_heads * head_dim, config.num_kv_heads * head_dim
        self.q_proj = Linear(precision, hidden, num_q, bias=config.qkv_bias)
        self.k_proj = Linear(precision, hidden, num_kv, bias=config.qkv_bias)
        self.v_proj = Linear(precision, hidden, num_kv, bias=config.qkv_bias)
        self.o_proj = Linear(precision, num_q, hidden, bias=config.o_bias)
        if config.has_qk_norm:
            self.q_norm = _norm(config, precision, head_dim)
            self.k_norm = _norm(config, precision, head_dim)

    def _heads(self, op: Op, x: ir.Value, num_heads: int, norm: nn.Module | None) -> ir.Value:
        """[B, S, heads * D] to [B, heads, S, D]."""
        x = op.Reshape(x, [0, 0, num_heads, self._config.head_dim])
        return op.Transpose(x if norm is None else norm(op, x), perm=[0, 2, 1, 3])

    def forward(
        self, op: Op, x: ir.Value, past: tuple[ir.Value, ir.Value], context: _Context
    ) -> tuple[ir.Value, tuple[ir.Value, ir.Value]]:
        config = self._config
        q_norm, k_norm = (self.q_norm, self.k_norm) if config.has_qk_norm else (None, None)
        q = self._heads(op, self.q_proj(op, x), config.num_heads, q_norm)
        k = self._heads(op, self.k_proj(op, x), config.num_kv_heads, k_norm)
        v = self._heads(op, self.v_proj(op, x), config.num_kv_heads, None)
        q = op.RotaryEmbedding(q, *context.rope)
        k = op.RotaryEmbedding(k, *context.rope)
        keys = functions.cache_update(op, past[0], k, context.write_indices)
        values = functions.cache_update(op, past[1], v, context.write_indices)
        factor = config.attention_scale or config.head_dim**-0.5
        scale = np.array(factor, self._precision.compute.numpy())
        q = op.Mul(q, op.initializer(ir.tensor(scale), name="scale"))
        if context.mask is None:
            y = functions.attention(op, q, keys, values, context.kv_lengths)
        else:
            y = functions.masked_attention(op, q, keys, values, context.mask)
        y = op.Reshape(
            op.Transpose(y, perm=[0, 2, 1, 3]), [0, 0, config.num_heads * config.head_dim]
        )
        return self.o_proj(op, _take(op, y, context.index)), (keys, values)


def _take(op: Op, x: ir.Value, index: ir.Value | None) -> ir.Value:
    """The tokens [B, L, H] of [B, S, H] at `index` int64 [B, L, 1]; None takes all."""
    return x if index is None else op.GatherND(x, index, batch_dims=1)


def _norm(config: DecoderConfig, precision: Precision, size: int) -> RMSNorm:
    return RMSNorm(precision, size, config.norm_epsilon, config.norm_offset)


class _Layer(nn.Module):
    def __init__(self, config: DecoderConfig, precision: Precision) -> None:
        super().__init__()
        self._has_post_norms = config.has_post_norms
        self.input_layernorm = _norm(config, precision, config.hidden_size)
        self.self_attn = _Attention(config, precision.attention)
        self.post_attention_layernorm = _norm(config, precision, config.hidden_size)
        if config.has_post_norms:
            self.pre_feedforward_layernorm = _norm(config, precision, config.hidden_size)
            self.post_feedforward_layernorm = _norm(config, precision, config.hidden_size)
        self.mlp = GatedMLP(
            precision,
            config.hidden_size,
            config.intermediate_size,
            activation=config.activation,
        )

    def forward(
        self, op: Op, x: ir.Value, past: tuple[ir.Value, ir.Value], context: _Context
    ) -> tuple[ir.Value, tuple[ir.Value, ir.Value]]:
        """The output of the tokens at `context.index`, and keys and values of all of them."""
        y, present = self.self_attn(op, self.input_layernorm(op, x), past, context)
        x = _take(op, x, context.index)
        if self._has_post_norms:
            x = op.Add(x, self.post_attention_layernorm(op, y))
            y = self.mlp(op, self.pre_feedforward_layernorm(op, x))
            return op.Add(x, self.post_feedforward_layernorm(op, y)), present
        x = op.Add(x, y)
        return op.Add(x, self.mlp(op, self.post_attention_layernorm(op, x))), present


class _Model(nn.Module):
    """Parameter paths are the checkpoint's: `model.layers.0.self_attn.q_proj.weight`."""

    def __init__(self, config: DecoderConfig, precision: Precision) -> None:
        super().__init__("model")
        self._config, self._precision = config, precision
        num_embeddings = config.num_embeddings or config.vocab_size
        self.embed_tokens = Embedding(precision, num_embeddings, config.hidden_size)
        self.layers = nn.ModuleList([self._layer(i) for i in range(config.num_layers)])
        self.norm = _norm(config, precision, config.hidden_size)
        self.rotary = Rotary(precision, config.inv_freq, config.rope_axes)
        if config.local_inv_freq is not None:
            self.local_rotary = Rotary(precision, config.local_inv_freq, config.rope_axes)

    def _layer(self, index: int) -> nn.Module:
        cross = self._config.cross_attention
        if cross is not None and index in cross.layers:
            return CrossAttentionLayer(cross, self._precision)
        return _Layer(self._config, self._precision)

    def forward(
        self, op: Op, feeds: dict[str, ir.Value]
    ) -> tuple[ir.Value, list[tuple[ir.Value, ir.Value]]]:
        cross = self._config.cross_attention
        others: list[ir.Value] = []
        if cross is None:
            is_image = op.GreaterOrEqual(feeds["image_index"], 0)
            contexts = self._contexts(op, feeds, is_image)
            is_image = op.Unsqueeze(is_image, [2])
            first, *others = self._image_parts(op, feeds)
            x = op.Where(is_image, first, self._embed(op, feeds["input_ids"]))
        else:
            contexts = self._contexts(op, feeds, None)
            seen = CrossContext(op, cross.capacity, feeds["cross_range"], feeds["cross_lengths"])
            x = self._embed(op, feeds["input_ids"])
        # Only these tokens need more of the last layer than keys and values, and the head, which is a large
        # part of a small model. They are taken behind the layer if it is there that images come in.
        index = op.Unsqueeze(feeds["logits_index"], [2])
        last = len(self.layers) - 1
        is_early = last >= len(others) and isinstance(self.layers[last], _Layer)
        presents = []
        for i, layer in enumerate(self.layers):
            if isinstance(layer, CrossAttentionLayer):
                x = layer(op, x, (feeds[f"cross_key.{i}"], feeds[f"cross_value.{i}"]), seen)
                continue
            past = feeds[f"past_key.{i}"], feeds[f"past_value.{i}"]
            context = contexts[i in self._config.sliding_layers]
            if is_early and i == last:
                context = replace(context, index=index)
            x, present = layer(op, x, past, context)
            presents.append(present)
            if i < len(others):
                x = op.Where(is_image, op.Add(x, others[i]), x)
        return self.norm(op, x if is_early else _take(op, x, index)), presents

    def _embed(self, op: Op, ids: ir.Value) -> ir.Value:
        x = self.embed_tokens(op, ids)
        if self._config.embedding_scale == 1.0:
            return x
        scale = np.array(self._config.embedding_scale, self._precision.compute.numpy())
        return op.Mul(x, op.initializer(ir.tensor(scale), name="embedding_scale"))

    def _image_parts(self, op: Op, feeds: dict[str, ir.Value]) -> list[ir.Value]:
        """The parts of each token's image embedding, [B, S, H] each."""
        rows = op.Gather(feeds["image_embeds"], op.Max(feeds["image_index"], 0), axis=0)
        num_parts = 1 + self._config.num_deepstack_layers
        if num_parts == 1:
            return [rows]
        return list(op.Split(rows, axis=-1, num_outputs=num_parts, _outputs=num_parts))

    def _contexts(
        self, op: Op, feeds: dict[str, ir.Value], is_image: ir.Value | None
    ) -> tuple[_Context, _Context]:
        """Of the layers that see everything, and of those with a window."""
        config, positions = self._config, feeds["position_ids"]
        writes, lengths = feeds["write_indices"], feeds["kv_lengths"]
        mask = sliding_mask = None
        if config.has_mask and is_image is not None:
            mask, sliding_mask = masks(op, config, writes, lengths, is_image)
        full = _Context(self.rotary(op, positions), writes, lengths, mask)
        if not config.sliding_layers:
            return full, full
        rope = full.rope if config.local_inv_freq is None else self.local_rotary(op, positions)
        return full, _Context(rope, writes, lengths, sliding_mask)


class _Head(nn.Module):
    """Logits float32 [B, L, V] of hidden states [B, L, H]."""

    def __init__(self, config: DecoderConfig, precision: Precision, tied: Embedding) -> None:
        super().__init__("lm_head")
        self._config = config
        # One stored table serves both ends when nothing is quantized.
        self._tied = [tied] if config.tied_embeddings and precision.weight_bits is None else []
        if not self._tied:
            self.proj = Linear(precision.head, config.hidden_size, config.vocab_size)
            self.proj._set_name("")  # the checkpoint calls it lm_head.weight

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        config = self._config
        if not self._tied:
            return op.Cast(self.proj(op, x), to=ir.DataType.FLOAT)
        logits = self._tied[0].project(op, op.Reshape(x, [-1, config.hidden_size]))
        shape = op.Concat(op.Shape(x, start=0, end=2), [config.vocab_size], axis=0)
        return op.Cast(op.Reshape(logits, shape), to=ir.DataType.FLOAT)


def build_decoder(config: DecoderConfig, precision: Precision) -> tuple[ir.Model, GraphSpec]:
    """The decoder graph without numbers, and its contract.

    Weights are named as in the checkpoint: `model.*`, and `lm_head.weight` unless tied.
    """
    spec = decoder_spec(config, precision.compute.numpy().name)
    builder = new_graph(spec)
    feeds = declare_inputs(builder, spec, precision.compute)
    model = _Model(config, precision)
    x, presents = model(builder.op, feeds)
    logits = _Head(config, precision, model.embed_tokens)(builder.op, x)
    values = [logits, *(value for present in presents for value in present)]
    declare_outputs(builder, spec, values)
    attention = (
        functions.masked_attention_function if config.has_mask else functions.attention_function
    )
    used = [attention(), functions.cache_update_function()]
    if config.cross_attention is not None:
        used.append(functions.cross_attention_function())
    return to_model(builder, used), spec
