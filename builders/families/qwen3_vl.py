"""Qwen3-VL: learned positions in the tower, DeepStack for the first decoder layers, interleaved M-RoPE.

An image embedding is [1 + D] times the decoder's size: what takes the token's place, then what the first D
layers add to it.

Dimension letters: N patches, D DeepStack levels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from onnxscript import nn

from builders.decoder import DecoderConfig
from builders.families.base import BuildLimits
from builders.families.qwen2_vl import Qwen2VLGraphs
from builders.modules import MLP, LayerNorm, Linear, Op, Weight
from builders.patch_tower import (
    NORM_EPSILON,
    Groups,
    PatchBlock,
    PatchEmbed,
    axial_rope,
)
from builders.precision import Precision
from python_backend.spec import TensorSpec


class Qwen3VLGraphs(Qwen2VLGraphs):
    """Graphs of `Qwen3VLForConditionalGeneration`."""

    architectures: ClassVar[tuple[str, ...]] = ("Qwen3VLForConditionalGeneration",)

    @property
    def _num_levels(self) -> int:
        return len(self.config["vision_config"]["deepstack_visual_indexes"])

    @property
    def embeds_size(self) -> int:
        return super().embeds_size * (1 + self._num_levels)

    def vision_inputs(self) -> tuple[TensorSpec, ...]:
        return (
            *super().vision_inputs(),
            TensorSpec("grid_index", "int64", ("N", 4)),
            TensorSpec("grid_weight", "float32", ("N", 4)),
        )

    def tower(self, precision: Precision) -> nn.Module:
        return _Visual(self.config["vision_config"], precision)

    def decoder_config(self, limits: BuildLimits) -> DecoderConfig:
        bias = self.config["text_config"]["attention_bias"]
        return replace(
            super().decoder_config(limits),
            qkv_bias=bias,
            o_bias=bias,
            has_qk_norm=True,
            num_deepstack_layers=self._num_levels,
        )

    def rope_axes(self, sections: list[int]) -> np.ndarray:
        """Height and width take turns with time; the slow frequencies are left to time.

        Source: `Qwen3VLTextRotaryEmbedding.recomposition_frequencies` in transformers 5.23.
        """
        axes = np.zeros(sum(sections), np.int64)
        for axis in (1, 2):
            axes[axis : 3 * sections[axis] : 3] = axis
        return axes


class _PatchMerger(nn.Module):
    """`fc2(gelu(fc1(norm(x))))` over squares of patches; the norm is before or after they are joined."""

    def __init__(self, precision: Precision, config: dict[str, Any], *, joins_first: bool) -> None:
        super().__init__()
        hidden = config["hidden_size"]
        self._merged, self._joins_first = hidden * config["spatial_merge_size"] ** 2, joins_first
        self.norm = LayerNorm(precision, self._merged if joins_first else hidden, NORM_EPSILON)
        self.linear_fc1 = Linear(precision, self._merged, self._merged, bias=True)
        self.linear_fc2 = Linear(precision, self._merged, config["out_hidden_size"], bias=True)

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        if self._joins_first:
            x = op.Reshape(x, [-1, self._merged])
        x = op.Reshape(self.norm(op, x), [-1, self._merged])
        return self.linear_fc2(op, op.Gelu(self.linear_fc1(op, x)))


class _PositionTable(nn.Module):
    """The learned square grid of positions, resampled to the image's grid."""

    def __init__(self, precision: Precision, num_positions: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = Weight([num_positions, hidden_size], precision.compute)

    def forward(self, op: Op, index: ir.Value, weight: ir.Value) -> ir.Value:
        taps = op.Gather(self.weight, index)  # [N, 4, H]
        return op.Squeeze(op.MatMul(op.Unsqueeze(weight, [1]), taps), [1])


class _Visual(nn.Module):
    def __init__(self, config: dict[str, Any], precision: Precision) -> None:
        super().__init__("visual")
        hidden, num_heads = config["hidden_size"], config["num_heads"]
        self._head_dim, self._compute = hidden // num_heads, precision.compute
        self._levels = config["deepstack_visual_indexes"]
        self.patch_embed = PatchEmbed(precision, hidden, config, bias=True)
        self.pos_embed = _PositionTable(precision, config["num_position_embeddings"], hidden)
        self.blocks = nn.ModuleList(
            [
                PatchBlock(
                    precision,
                    hidden,
                    num_heads,
                    LayerNorm,
                    MLP(
                        precision,
                        hidden,
                        config["intermediate_size"],
                        activation=config["hidden_act"],
                        names=("linear_fc1", "linear_fc2"),
                    ),
                )
                for _ in range(config["depth"])
            ]
        )
        self.merger = _PatchMerger(precision, config, joins_first=False)
        self.deepstack_merger_list = nn.ModuleList(
            [_PatchMerger(precision, config, joins_first=True) for _ in self._levels]
        )

    def forward(self, op: Op, feeds: dict[str, ir.Value]) -> ir.Value:
        cos, sin = axial_rope(op, feeds["position_ids"], self._head_dim, self._compute)
        images = Groups(op, feeds["image_slots"], feeds["image_place"], cos, sin)
        x = self.patch_embed(op, feeds["pixel_values"])
        x = op.Add(x, self.pos_embed(op, feeds["grid_index"], feeds["grid_weight"]))
        levels = []
        for i, block in enumerate(self.blocks):
            x = block(op, x, images)
            if i in self._levels:
                merger = self.deepstack_merger_list[self._levels.index(i)]
                levels.append(merger(op, x))
        return op.Concat(self.merger(op, x), *levels, axis=1)
