"""Qwen2-VL: a tower whose patches see their whole image, and a common decoder with M-RoPE.

Dimension letters: N patches, G images, L patches of the largest image, M embeddings.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from onnxscript import nn

from builders.decoder import DecoderConfig, build_decoder, common_config
from builders.families.base import BuildLimits, FamilyGraphs
from builders.modules import MLP, LayerNorm, Linear, Op
from builders.patch_tower import (
    NORM_EPSILON,
    Groups,
    PatchBlock,
    PatchEmbed,
    axial_rope,
    patch_shape,
)
from builders.precision import Precision
from builders.profiles import Profile, patch_profiles
from python_backend.spec import GraphSpec, TensorSpec


class Qwen2VLGraphs(FamilyGraphs):
    """Graphs of `Qwen2VLForConditionalGeneration`."""

    architectures: ClassVar[tuple[str, ...]] = ("Qwen2VLForConditionalGeneration",)

    def vision_inputs(self) -> tuple[TensorSpec, ...]:
        return (
            TensorSpec(
                "pixel_values",
                "float32",
                ("N", int(np.prod(patch_shape(self.config["vision_config"])))),
            ),
            TensorSpec("position_ids", "int64", ("N", 2)),
            TensorSpec("image_slots", "int64", ("G", "L")),
            TensorSpec("image_place", "int64", ("N",)),
        )

    def vision_profiles(self, limits: BuildLimits) -> tuple[Profile, ...]:
        merged = self.config["vision_config"]["spatial_merge_size"] ** 2
        return patch_profiles(limits.max_model_len * merged, limits.max_shared_patches)

    def tower(self, precision: Precision) -> nn.Module:
        return _Visual(self.config["vision_config"], precision)

    def decoder(self, precision: Precision, limits: BuildLimits) -> tuple[ir.Model, GraphSpec]:
        return build_decoder(self.decoder_config(limits), precision)

    def decoder_config(self, limits: BuildLimits) -> DecoderConfig:
        """The decoder's sizes and kind."""
        text = self.config["text_config"]
        config = common_config(
            text,
            limits.max_model_len,
            tied_embeddings=self.config["tie_word_embeddings"],
            qkv_bias=True,
        )
        sections = text["rope_parameters"]["mrope_section"]
        return replace(config, rope_axes=self.rope_axes(sections))

    def rope_axes(self, sections: list[int]) -> np.ndarray:
        """The axis (time, height, width) that each frequency reads: consecutive sections."""
        return np.repeat(np.arange(len(sections)), sections)

    def checkpoint_names(self, path: str) -> tuple[str, ...]:
        if path == "lm_head.weight" and self.config["tie_word_embeddings"]:
            path = "model.embed_tokens.weight"
        # The hub's first layout, then the one that transformers 5 writes.
        if path.startswith("visual."):
            return path, "model." + path
        if path.startswith("model."):
            return path, "model.language_model." + path.removeprefix("model.")
        return (path,)


class Merger(nn.Module):
    """Each square of `spatial_merge_size`^2 patches becomes one embedding of the decoder's size."""

    def __init__(
        self, precision: Precision, norm: nn.Module, num_in: int, merge: int, num_out: int
    ) -> None:
        super().__init__()
        self._merged = num_in * merge**2
        self.ln_q = norm
        self.mlp = nn.ModuleList(
            [
                Linear(precision, self._merged, self._merged, bias=True),
                nn.Module(),  # the activation has a place in the checkpoint's numbering
                Linear(precision, self._merged, num_out, bias=True),
            ]
        )

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        x = op.Reshape(self.ln_q(op, x), [-1, self._merged])
        return self.mlp[2](op, op.Gelu(self.mlp[0](op, x)))


class _Visual(nn.Module):
    def __init__(self, config: dict[str, Any], precision: Precision) -> None:
        super().__init__("visual")
        hidden, num_heads = config["embed_dim"], config["num_heads"]
        self._head_dim, self._compute = hidden // num_heads, precision.compute
        self.patch_embed = PatchEmbed(precision, hidden, config)
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
                        int(hidden * config["mlp_ratio"]),
                        activation=config["hidden_act"],
                    ),
                )
                for _ in range(config["depth"])
            ]
        )
        norm = LayerNorm(precision, hidden, NORM_EPSILON)
        merge, num_out = config["spatial_merge_size"], config["hidden_size"]
        self.merger = Merger(precision, norm, hidden, merge, num_out)

    def forward(self, op: Op, feeds: dict[str, ir.Value]) -> ir.Value:
        cos, sin = axial_rope(op, feeds["position_ids"], self._head_dim, self._compute)
        images = Groups(op, feeds["image_slots"], feeds["image_place"], cos, sin)
        x = self.patch_embed(op, feeds["pixel_values"])
        for block in self.blocks:
            x = block(op, x, images)
        return self.merger(op, x)
