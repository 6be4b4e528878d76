"""Qwen2.5-VL: a tower whose patches see their window in most layers and their whole image in the others.

Dimension letters: N patches, W windows.
"""

from __future__ import annotations

from typing import Any, ClassVar

import onnx_ir as ir
from onnxscript import nn

from builders.families.qwen2_vl import Merger, Qwen2VLGraphs
from builders.modules import GatedMLP, Op, RMSNorm
from builders.patch_tower import (
    NORM_EPSILON,
    Groups,
    PatchBlock,
    PatchEmbed,
    axial_rope,
)
from builders.precision import Precision
from python_backend.spec import TensorSpec


class Qwen2_5VLGraphs(Qwen2VLGraphs):  # noqa: N801 - the model's name has the underscore
    """Graphs of `Qwen2_5_VLForConditionalGeneration`."""

    architectures: ClassVar[tuple[str, ...]] = ("Qwen2_5_VLForConditionalGeneration",)

    def vision_inputs(self) -> tuple[TensorSpec, ...]:
        config = self.config["vision_config"]
        slots = (config["window_size"] // config["patch_size"]) ** 2
        return (
            *super().vision_inputs(),
            TensorSpec("window_slots", "int64", ("W", slots)),
            TensorSpec("window_place", "int64", ("N",)),
        )

    def tower(self, precision: Precision) -> nn.Module:
        return _Visual(self.config["vision_config"], precision)


class _Visual(nn.Module):
    def __init__(self, config: dict[str, Any], precision: Precision) -> None:
        super().__init__("visual")
        hidden, num_heads = config["hidden_size"], config["num_heads"]
        self._head_dim, self._compute = hidden // num_heads, precision.compute
        self._full_attention = set(config["fullatt_block_indexes"])
        self.patch_embed = PatchEmbed(precision, hidden, config)
        self.blocks = nn.ModuleList(
            [
                PatchBlock(
                    precision,
                    hidden,
                    num_heads,
                    RMSNorm,
                    GatedMLP(
                        precision,
                        hidden,
                        config["intermediate_size"],
                        activation=config["hidden_act"],
                        bias=True,
                    ),
                )
                for _ in range(config["depth"])
            ]
        )
        norm = RMSNorm(precision, hidden, NORM_EPSILON)
        merge, num_out = config["spatial_merge_size"], config["out_hidden_size"]
        self.merger = Merger(precision, norm, hidden, merge, num_out)

    def forward(self, op: Op, feeds: dict[str, ir.Value]) -> ir.Value:
        cos, sin = axial_rope(op, feeds["position_ids"], self._head_dim, self._compute)
        windows = Groups(op, feeds["window_slots"], feeds["window_place"], cos, sin)
        images = Groups(op, feeds["image_slots"], feeds["image_place"], cos, sin)
        x = self.patch_embed(op, feeds["pixel_values"])
        for i, block in enumerate(self.blocks):
            x = block(op, x, images if i in self._full_attention else windows)
        return self.merger(op, x)
