"""Gemma 3: a SigLIP tower whose features are averaged in squares, and a decoder with windows and two ropes.

Image tokens see each other both ways; five layers of six see a window only. Text-only checkpoints are the
decoder alone.

Dimension letters: T pictures (crops included), N features of one, H hidden, M embeddings of all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from onnxscript import nn

from builders.decoder import DecoderConfig, build_decoder, common_config
from builders.families.base import BuildLimits, FamilyGraphs, nested_names
from builders.modules import Op, RMSNorm, Weight, rope_inv_freq
from builders.precision import Precision
from builders.profiles import Profile, tile_profile
from builders.siglip import SiglipTower
from python_backend.errors import BundleError
from python_backend.families.base import Features
from python_backend.spec import GraphSpec, TensorSpec


class Gemma3Graphs(FamilyGraphs):
    """Graphs of `Gemma3ForConditionalGeneration`."""

    architectures: ClassVar[tuple[str, ...]] = ("Gemma3ForConditionalGeneration",)

    def vision_inputs(self) -> tuple[TensorSpec, ...]:
        vision = self.config["vision_config"]
        side = vision["image_size"]
        return (TensorSpec("pixel_values", "float32", ("T", vision["num_channels"], side, side)),)

    def vision_profiles(self, limits: BuildLimits) -> tuple[Profile, ...]:
        max_tiles = max(1, limits.max_model_len // self.config["mm_tokens_per_image"])
        return (tile_profile(max_tiles, limits.max_model_len),)

    def tower(self, precision: Precision) -> nn.Module:
        return _Visual(self.config, precision)

    def decoder(self, precision: Precision, limits: BuildLimits) -> tuple[ir.Model, GraphSpec]:
        config = _decoder_config(
            self.config["text_config"],
            limits,
            is_tied=self.config["tie_word_embeddings"],
            sees_images=True,
        )
        return build_decoder(config, precision)

    def reference_inputs(self, images: Sequence[Features]) -> dict[str, np.ndarray]:
        return {"pixel_values": np.concatenate([image["pixel_values"] for image in images])}

    def checkpoint_names(self, path: str) -> tuple[str, ...]:
        return nested_names(path, is_tied=self.config["tie_word_embeddings"])


class Gemma3TextGraphs(FamilyGraphs):
    """Graph of `Gemma3ForCausalLM`."""

    architectures: ClassVar[tuple[str, ...]] = ("Gemma3ForCausalLM",)
    sees_images: ClassVar[bool] = False

    def decoder(self, precision: Precision, limits: BuildLimits) -> tuple[ir.Model, GraphSpec]:
        is_tied = self.config["tie_word_embeddings"]
        config = _decoder_config(self.config, limits, is_tied=is_tied, sees_images=False)
        return build_decoder(config, precision)

    def checkpoint_names(self, path: str) -> tuple[str, ...]:
        if path == "lm_head.weight" and self.config["tie_word_embeddings"]:
            path = "model.embed_tokens.weight"
        return (path,)


def _decoder_config(
    text: Mapping[str, Any], limits: BuildLimits, *, is_tied: bool, sees_images: bool
) -> DecoderConfig:
    """Of a normalized text config."""
    for name in (
        "final_logit_softcapping",
        "attn_logit_softcapping",
        "use_bidirectional_attention",
    ):
        if text.get(name):
            raise BundleError(f"this checkpoint has {name}, which is not supported")
    rope = text["rope_parameters"]
    layer_types = text["layer_types"]
    common = common_config(
        {
            **text,
            "hidden_act": text["hidden_activation"],
            "rope_parameters": rope["full_attention"],
            "layer_types": None,
        },
        limits.max_model_len,
        tied_embeddings=is_tied,
        qkv_bias=text["attention_bias"],
    )
    return replace(
        common,
        o_bias=text["attention_bias"],
        has_qk_norm=True,
        norm_offset=1.0,
        has_post_norms=True,
        attention_scale=text["query_pre_attn_scalar"] ** -0.5,
        embedding_scale=text["hidden_size"] ** 0.5,
        sees_whole_images=sees_images,
        sliding_layers=frozenset(
            i for i, kind in enumerate(layer_types) if kind == "sliding_attention"
        ),
        sliding_window=text["sliding_window"],
        local_inv_freq=rope_inv_freq(common.head_dim, rope["sliding_attention"]),
    )


class _Projector(nn.Module):
    """The mean of every square of features, normed and projected."""

    def __init__(self, config: Mapping[str, Any], precision: Precision) -> None:
        super().__init__("multi_modal_projector")
        vision, self._num_out = config["vision_config"], config["text_config"]["hidden_size"]
        self._hidden = vision["hidden_size"]
        side = vision["image_size"] // vision["patch_size"]
        self._squares = int(config["mm_tokens_per_image"] ** 0.5)
        self._square = side // self._squares
        if self._square * self._squares != side:
            raise BundleError(
                f"mm_tokens_per_image {config['mm_tokens_per_image']} does not divide the tower's "
                f"{side} x {side} features"
            )
        self.mm_soft_emb_norm = RMSNorm(
            precision, self._hidden, vision["layer_norm_eps"], offset=1.0
        )
        self.mm_input_projection_weight = Weight([self._hidden, self._num_out], precision.compute)

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        shape = [0, self._squares, self._square, self._squares, self._square, self._hidden]
        x = op.ReduceMean(op.Reshape(x, shape), [2, 4], keepdims=0)
        x = self.mm_soft_emb_norm(op, op.Reshape(x, [-1, self._hidden]))
        return op.MatMul(x, self.mm_input_projection_weight)


class _Visual(nn.Module):
    def __init__(self, config: Mapping[str, Any], precision: Precision) -> None:
        super().__init__()
        self.vision_tower = SiglipTower(
            "vision_tower", config["vision_config"], precision, has_norm=True
        )
        self.multi_modal_projector = _Projector(config, precision)

    def forward(self, op: Op, feeds: dict[str, ir.Value]) -> ir.Value:
        return self.multi_modal_projector(op, self.vision_tower(op, feeds["pixel_values"]))
