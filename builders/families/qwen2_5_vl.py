"""Qwen2.5-VL: the window-attention vision tower, and a common decoder with M-RoPE.

The tower's graph takes integers planned on the host (`python_backend.families.qwen2_5_vl`): patches
stay in their own order, and every attention layer gathers them into equal groups, runs a batch of
small attentions, and gathers back. A group is a window in most layers and a whole image in the
`fullatt_block_indexes`; nothing in the graph depends on data.

Dimension letters: N patches, P numbers per patch, G groups, L slots per group, H hidden, D head
size.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from onnxscript import nn

from builders.decoder import DecoderConfig, build_decoder
from builders.families.base import BuildLimits, FamilyGraphs
from builders.graph import declare_inputs, declare_outputs, new_graph, to_model
from builders.modules import (
    Dense,
    GatedMLP,
    Linear,
    Op,
    RMSNorm,
    Weight,
    constant,
    rope_inv_freq,
)
from builders.precision import Precision
from python_backend.spec import GraphSpec, TensorSpec

_NORM_EPSILON = 1e-6  # Qwen2_5_VLVisionBlock and PatchMerger in transformers 5.23, not configurable


class Qwen2_5VLGraphs(FamilyGraphs):  # noqa: N801 - the model's name has the underscore
    """Graphs of `Qwen2_5_VLForConditionalGeneration`."""

    architectures: ClassVar[tuple[str, ...]] = ("Qwen2_5_VLForConditionalGeneration",)

    def vision_encoder(self, precision: Precision) -> tuple[ir.Model, GraphSpec]:
        config = self.config["vision_config"]
        spec = _vision_spec(config, precision.compute.numpy().name)
        builder = new_graph(spec)
        tower = _Visual(config, precision.unquantized)
        embeds = tower(builder.op, declare_inputs(builder, spec))
        declare_outputs(builder, spec, [embeds])
        return to_model(builder), spec

    def decoder(self, precision: Precision, limits: BuildLimits) -> tuple[ir.Model, GraphSpec]:
        text = self.config["text_config"]
        rope = text["rope_parameters"]
        head_dim = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
        sections = rope["mrope_section"]
        return build_decoder(
            DecoderConfig(
                hidden_size=text["hidden_size"],
                intermediate_size=text["intermediate_size"],
                num_layers=text["num_hidden_layers"],
                num_heads=text["num_attention_heads"],
                num_kv_heads=text["num_key_value_heads"],
                head_dim=head_dim,
                vocab_size=text["vocab_size"],
                norm_epsilon=text["rms_norm_eps"],
                inv_freq=rope_inv_freq(head_dim, rope["rope_theta"]),
                # Frequencies are handed to the axes time, height, width in consecutive sections.
                rope_axes=np.repeat(np.arange(len(sections)), sections),
                qkv_bias=True,
                tied_embeddings=self.config["tie_word_embeddings"],
                max_model_len=limits.max_model_len,
            ),
            precision,
        )

    def checkpoint_names(self, path: str) -> tuple[str, ...]:
        if path == "lm_head.weight" and self.config["tie_word_embeddings"]:
            path = "model.embed_tokens.weight"
        # The hub's layout first, then the one that transformers 5 writes.
        if path.startswith("visual."):
            return path, "model." + path
        if path.startswith("model."):
            return path, "model.language_model." + path.removeprefix("model.")
        return (path,)


def _vision_spec(config: dict[str, Any], compute: str) -> GraphSpec:
    patch = config["patch_size"]
    num_pixels = config.get("in_channels", 3) * config["temporal_patch_size"] * patch**2
    slots = (config["window_size"] // patch) ** 2
    return GraphSpec(
        name="vision_encoder",
        inputs=(
            TensorSpec("pixel_values", compute, ("N", num_pixels)),
            TensorSpec("position_ids", "int64", ("N", 2)),
            TensorSpec("window_slots", "int64", ("W", slots)),
            TensorSpec("window_place", "int64", ("N",)),
            TensorSpec("image_slots", "int64", ("G", "L")),
            TensorSpec("image_place", "int64", ("N",)),
        ),
        outputs=(TensorSpec("image_embeds", compute, ("M", config["out_hidden_size"])),),
        aliases={},
    )


class _Groups:
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


class _Attention(nn.Module):
    def __init__(self, config: dict[str, Any], precision: Precision) -> None:
        super().__init__()
        self._hidden, self._heads = config["hidden_size"], config["num_heads"]
        self.qkv = Linear(precision, self._hidden, 3 * self._hidden, bias=True)
        self.proj = Linear(precision, self._hidden, self._hidden, bias=True)

    def forward(self, op: Op, x: ir.Value, groups: _Groups) -> ir.Value:
        head_dim = self._hidden // self._heads
        qkv = groups.pack(op, self.qkv(op, x))  # [G, L, 3 * H]
        qkv = op.Transpose(op.Reshape(qkv, [0, 0, 3, self._heads, head_dim]), perm=[2, 0, 3, 1, 4])
        q, k, v = (
            op.Squeeze(part, [0]) for part in op.Split(qkv, axis=0, num_outputs=3, _outputs=3)
        )
        q, k = op.RotaryEmbedding(q, *groups.rope), op.RotaryEmbedding(k, *groups.rope)
        y = op.Transpose(op.Attention(q, k, v, groups.mask), perm=[0, 2, 1, 3])
        return self.proj(op, groups.unpack(op, y, self._hidden))


class _Block(nn.Module):
    def __init__(self, config: dict[str, Any], precision: Precision) -> None:
        super().__init__()
        hidden = config["hidden_size"]
        self.norm1 = RMSNorm(precision, hidden, _NORM_EPSILON)
        self.norm2 = RMSNorm(precision, hidden, _NORM_EPSILON)
        self.attn = _Attention(config, precision)
        self.mlp = GatedMLP(precision, hidden, config["intermediate_size"], bias=True)

    def forward(self, op: Op, x: ir.Value, groups: _Groups) -> ir.Value:
        x = op.Add(x, self.attn(op, self.norm1(op, x), groups))
        return op.Add(x, self.mlp(op, self.norm2(op, x)))


class _PatchProjection(nn.Module):
    """The Conv3d whose stride is its kernel: one product per patch."""

    def __init__(self, config: dict[str, Any], precision: Precision) -> None:
        super().__init__()
        self._dense = Dense(precision)
        patch = config["patch_size"]
        kernel = [config.get("in_channels", 3), config["temporal_patch_size"], patch, patch]
        self._shape = [config["hidden_size"], int(np.prod(kernel))]
        if precision.linked:
            self.weight = self._dense.weight([config["hidden_size"], *kernel])
        else:
            self.weight = Weight(
                self._shape[::-1],
                precision.compute,
                encode=lambda array: array.reshape(self._shape).T,
            )

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        if not self._dense.precision.linked:
            return op.MatMul(x, self.weight)
        matrix = op.Reshape(self._dense.cast(op, self.weight), self._shape)
        return op.MatMul(x, op.Transpose(matrix, perm=[1, 0]))


class _PatchEmbed(nn.Module):
    def __init__(self, config: dict[str, Any], precision: Precision) -> None:
        super().__init__()
        self.proj = _PatchProjection(config, precision)

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        return self.proj(op, x)


class _Merger(nn.Module):
    """Each square of `spatial_merge_size`^2 patches becomes one embedding of the decoder's size."""

    def __init__(self, config: dict[str, Any], precision: Precision) -> None:
        super().__init__()
        self._merged = config["hidden_size"] * config["spatial_merge_size"] ** 2
        self.ln_q = RMSNorm(precision, config["hidden_size"], _NORM_EPSILON)
        self.mlp = nn.ModuleList(
            [
                Linear(precision, self._merged, self._merged, bias=True),
                nn.Module(),  # the activation has a place in the checkpoint's numbering
                Linear(precision, self._merged, config["out_hidden_size"], bias=True),
            ]
        )

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        x = op.Reshape(self.ln_q(op, x), [-1, self._merged])
        return self.mlp[2](op, op.Gelu(self.mlp[0](op, x)))


class _Visual(nn.Module):
    def __init__(self, config: dict[str, Any], precision: Precision) -> None:
        super().__init__("visual")
        self._config, self._compute = config, precision.compute
        self.patch_embed = _PatchEmbed(config, precision)
        self.blocks = nn.ModuleList([_Block(config, precision) for _ in range(config["depth"])])
        self.merger = _Merger(config, precision)

    def _rope(self, op: Op, position_ids: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Angles as cos and sin [N, D/2]: the row's angles, then the column's.

        Source: `Qwen2_5_VisionRotaryEmbedding` in transformers 5.23.
        """
        half = self._config["hidden_size"] // self._config["num_heads"] // 2
        inv_freq = constant(op, rope_inv_freq(half, 10000.0), "inv_freq")
        positions = op.Unsqueeze(op.Cast(position_ids, to=ir.DataType.FLOAT), [2])
        angles = op.Reshape(op.Mul(positions, inv_freq), [0, half])
        cos, sin = op.Cos(angles), op.Sin(angles)
        if self._compute == ir.DataType.FLOAT:
            return cos, sin
        return op.Cast(cos, to=self._compute), op.Cast(sin, to=self._compute)

    def forward(self, op: Op, feeds: dict[str, ir.Value]) -> ir.Value:
        cos, sin = self._rope(op, feeds["position_ids"])
        windows = _Groups(op, feeds["window_slots"], feeds["window_place"], cos, sin)
        images = _Groups(op, feeds["image_slots"], feeds["image_place"], cos, sin)
        x = self.patch_embed(op, feeds["pixel_values"])
        for i, block in enumerate(self.blocks):
            x = block(op, x, images if i in self._config["fullatt_block_indexes"] else windows)
        return self.merger(op, x)
