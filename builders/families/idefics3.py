"""Idefics3 and SmolVLM: a SigLIP tower over square frames of a picture, joined in squares by a linear layer.

Dimension letters: T frames, N features of a frame, H hidden, M embeddings of all frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from onnxscript import nn

from builders.decoder import build_decoder, common_config
from builders.families.base import BuildLimits, FamilyGraphs
from builders.modules import Linear, Op
from builders.precision import Precision
from builders.profiles import Profile, tile_profile
from builders.siglip import SiglipTower
from python_backend.errors import BundleError
from python_backend.families.base import Features
from python_backend.spec import GraphSpec, TensorSpec


class Idefics3Graphs(FamilyGraphs):
    """Graphs of `Idefics3ForConditionalGeneration` and `SmolVLMForConditionalGeneration`."""

    architectures: ClassVar[tuple[str, ...]] = (
        "Idefics3ForConditionalGeneration",
        "SmolVLMForConditionalGeneration",
    )

    def vision_inputs(self) -> tuple[TensorSpec, ...]:
        vision = self.config["vision_config"]
        side = vision["image_size"]
        return (TensorSpec("pixel_values", "float32", ("T", vision["num_channels"], side, side)),)

    def vision_profiles(self, limits: BuildLimits) -> tuple[Profile, ...]:
        vision = self.config["vision_config"]
        side = vision["image_size"] // vision["patch_size"] // self.config["scale_factor"]
        max_tiles = max(1, limits.max_model_len // side**2)
        return (tile_profile(max_tiles, limits.max_model_len),)

    def tower(self, precision: Precision) -> nn.Module:
        return _Visual(self.config, precision)

    def decoder(self, precision: Precision, limits: BuildLimits) -> tuple[ir.Model, GraphSpec]:
        text = self.config["text_config"]
        if text["model_type"] != "llama" or text.get("attention_bias") or text.get("mlp_bias"):
            raise BundleError(
                f"text model {text['model_type']!r} of this checkpoint is not supported; supported is a "
                "llama without biases"
            )
        config = common_config(
            text,
            limits.max_model_len,
            tied_embeddings=self.config["tie_word_embeddings"],
            qkv_bias=False,
        )
        return build_decoder(config, precision)

    def reference_inputs(self, images: Sequence[Features]) -> dict[str, np.ndarray]:
        pixels = np.concatenate([image["pixel_values"] for image in images])
        return {
            "pixel_values": pixels[None],
            "pixel_attention_mask": np.ones((1, len(pixels), *pixels.shape[2:]), np.int64),
        }

    def checkpoint_names(self, path: str) -> tuple[str, ...]:
        if path == "lm_head.weight" and self.config["tie_word_embeddings"]:
            path = "model.embed_tokens.weight"
        if path.startswith("model."):
            return (f"model.text_model.{path.removeprefix('model.')}",)
        return (path,) if path == "lm_head.weight" else (f"model.{path}",)


def frame_positions(side: int) -> np.ndarray:
    """Which row of the position table each patch of a frame of `side` x `side` patches takes, int64 [N].

    Its rows are what the model makes of fractions of the side, float32 rounding included.

    Source: `Idefics3VisionEmbeddings` in transformers 5.23.
    """
    boundaries = np.arange(1 / side, 1.0, 1 / side).astype(np.float32)
    fractions = np.arange(side, dtype=np.float32) * (np.float32(1.0) / np.float32(side))
    buckets = np.searchsorted(boundaries, np.minimum(fractions, np.float32(1.0 - 1e-6)), "right")
    return (buckets[:, None] * side + buckets).ravel()


class _ModalityProjection(nn.Module):
    def __init__(self, precision: Precision, num_in: int, num_out: int) -> None:
        super().__init__()
        self.proj = Linear(precision, num_in, num_out)

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        return self.proj(op, x)


class _Connector(nn.Module):
    """Every square of `scale_factor` x `scale_factor` features becomes one embedding."""

    def __init__(self, config: Mapping[str, Any], precision: Precision) -> None:
        super().__init__("connector")
        vision, self._scale = config["vision_config"], config["scale_factor"]
        self._hidden = vision["hidden_size"]
        self._side = vision["image_size"] // vision["patch_size"] // self._scale
        self._merged = self._hidden * self._scale**2
        self.modality_projection = _ModalityProjection(
            precision, self._merged, config["text_config"]["hidden_size"]
        )

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        shape = [0, self._side, self._scale, self._side, self._scale, self._hidden]
        x = op.Transpose(op.Reshape(x, shape), perm=[0, 1, 3, 2, 4, 5])
        return self.modality_projection(op, op.Reshape(x, [-1, self._merged]))


class _Visual(nn.Module):
    def __init__(self, config: Mapping[str, Any], precision: Precision) -> None:
        super().__init__()
        vision = config["vision_config"]
        side = vision["image_size"] // vision["patch_size"]
        self.vision_model = SiglipTower(
            "vision_model",
            vision,
            precision,
            has_norm=True,
            position_ids=frame_positions(side),
        )
        self.connector = _Connector(config, precision)

    def forward(self, op: Op, feeds: dict[str, ir.Value]) -> ir.Value:
        return self.connector(op, self.vision_model(op, feeds["pixel_values"]))
