"""LLaVA-OneVision: a SigLIP tower over tiles, whose features are unpadded, resampled and put in rows.

The host plans every image embedding as a weighted sum of up to four features (`python_backend.families.
llava_onevision`), so the graph has one gather for all of it.

Dimension letters: T tiles, N features of a tile, H hidden, M embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from onnxscript import nn

from builders.decoder import build_decoder, common_config
from builders.families.base import BuildLimits, FamilyGraphs, nested_names
from builders.modules import Linear, Op, Weight, activate
from builders.precision import Precision
from builders.profiles import Profile, tile_profile
from builders.siglip import SiglipTower
from python_backend.errors import BundleError
from python_backend.families.base import Features
from python_backend.spec import GraphSpec, TensorSpec


class LlavaOnevisionGraphs(FamilyGraphs):
    """Graphs of `LlavaOnevisionForConditionalGeneration`."""

    architectures: ClassVar[tuple[str, ...]] = ("LlavaOnevisionForConditionalGeneration",)

    def vision_inputs(self) -> tuple[TensorSpec, ...]:
        vision = self.config["vision_config"]
        side = vision["image_size"]
        return (
            TensorSpec("pixel_values", "float32", ("T", vision["num_channels"], side, side)),
            TensorSpec("pack_index", "int64", ("M", 4)),
            TensorSpec("pack_weight", "float32", ("M", 4)),
        )

    def vision_profiles(self, limits: BuildLimits) -> tuple[Profile, ...]:
        side = self.config["vision_config"]["image_size"]
        grids = self.config["image_grid_pinpoints"]
        max_tiles = 1 + max(height * width // side**2 for height, width in grids)
        return (tile_profile(max_tiles, limits.max_model_len),)

    def tower(self, precision: Precision) -> nn.Module:
        return _Visual(self.config, precision)

    def decoder(self, precision: Precision, limits: BuildLimits) -> tuple[ir.Model, GraphSpec]:
        text = self.config["text_config"]
        if text["model_type"] != "qwen2":
            raise BundleError(
                f"text model {text['model_type']!r} of a LLaVA-OneVision is not supported; supported is qwen2"
            )
        config = common_config(
            text,
            limits.max_model_len,
            tied_embeddings=self.config["tie_word_embeddings"],
            qkv_bias=True,
        )
        return build_decoder(config, precision)

    def reference_inputs(self, images: Sequence[Features]) -> dict[str, np.ndarray]:
        pixels = [image["pixel_values"] for image in images]
        most = max(map(len, pixels))
        padded = [np.pad(p, ((0, most - len(p)), (0, 0), (0, 0), (0, 0))) for p in pixels]
        return {
            "pixel_values": np.stack(padded),
            "image_sizes": np.concatenate([image["image_sizes"] for image in images]),
            "batch_num_images": np.array([len(images)]),
        }

    def checkpoint_names(self, path: str) -> tuple[str, ...]:
        return nested_names(path, is_tied=self.config["tie_word_embeddings"])


class _Projector(nn.Module):
    def __init__(self, config: Mapping[str, Any], precision: Precision) -> None:
        super().__init__("multi_modal_projector")
        num_in, num_out = (
            config["vision_config"]["hidden_size"],
            config["text_config"]["hidden_size"],
        )
        bias = config["multimodal_projector_bias"]
        self._activation = config["projector_hidden_act"]
        self.linear_1 = Linear(precision, num_in, num_out, bias=bias)
        self.linear_2 = Linear(precision, num_out, num_out, bias=bias)

    def forward(self, op: Op, x: ir.Value) -> ir.Value:
        return self.linear_2(op, activate(op, self.linear_1(op, x), self._activation))


class _Visual(nn.Module):
    def __init__(self, config: Mapping[str, Any], precision: Precision) -> None:
        super().__init__()
        vision, layer = config["vision_config"], config["vision_feature_layer"]
        if vision["model_type"] != "siglip_vision_model" or not isinstance(layer, int):
            raise BundleError(
                "this LLaVA-OneVision has another vision tower than SigLIP, or takes features of several "
                "of its layers: not supported"
            )
        if config["vision_feature_select_strategy"] != "full":
            raise BundleError("vision_feature_select_strategy must be full")
        num_layers = layer if layer >= 0 else vision["num_hidden_layers"] + 1 + layer
        self._hidden = config["text_config"]["hidden_size"]
        self.vision_tower = SiglipTower(
            "vision_tower", vision, precision, num_layers=num_layers, has_norm=False
        )
        self.multi_modal_projector = _Projector(config, precision)
        self.image_newline = Weight([self._hidden], precision.compute)

    def forward(self, op: Op, feeds: dict[str, ir.Value]) -> ir.Value:
        x = self.multi_modal_projector(op, self.vision_tower(op, feeds["pixel_values"]))
        newline = op.Unsqueeze(self.image_newline, [0])
        features = op.Concat(op.Reshape(x, [-1, self._hidden]), newline, axis=0)  # [T * N + 1, H]
        taps = op.Gather(features, feeds["pack_index"])  # [M, 4, H]
        return op.Squeeze(op.MatMul(op.Unsqueeze(feeds["pack_weight"], [1]), taps), [1])
