"""Llama 3.2 Vision: a tower over the tiles of a picture, and a decoder some of whose layers attend to it.

Dimension letters: P pictures, T tiles of one (with those that only fill up), C channels, R rows (and columns)
of pixels, N tokens of a tile (its class token and its patches), L the same rounded up to a multiple of 8,
H hidden, M embeddings of all pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from onnxscript import nn

from builders.cross_attention import CrossAttentionConfig, build_cross_attention
from builders.decoder import DecoderConfig, build_decoder, common_config
from builders.families.base import BuildLimits, FamilyGraphs, nested_names
from builders.modules import MLP, Embedding, LayerNorm, Linear, Op, Weight, constant
from builders.precision import Precision
from builders.profiles import Profile
from builders.siglip import PatchEmbedding, attend
from python_backend.errors import BundleError
from python_backend.families.base import Features
from python_backend.families.mllama import num_tile_tokens
from python_backend.spec import GraphSpec, TensorSpec

# Source: transformers 5.23 `modeling_mllama.py`: of the norms around the two encoders, the multiple
# that a tile's tokens are filled up to, and the rows that the embedding table has more than the head.
_NORM_EPSILON = 1e-5
_TILE_MULTIPLE = 8
_NUM_MORE_TOKENS = 8


class MllamaGraphs(FamilyGraphs):
    """Graphs of `MllamaForConditionalGeneration`."""

    architectures: ClassVar[tuple[str, ...]] = ("MllamaForConditionalGeneration",)

    def vision_inputs(self) -> tuple[TensorSpec, ...]:
        vision = self.config["vision_config"]
        tiles, side = vision["max_num_tiles"], vision["image_size"]
        return (
            TensorSpec("pixel_values", "float32", ("P", tiles, vision["num_channels"], side, side)),
            TensorSpec("aspect_ratio_ids", "int64", ("P",)),
        )

    def vision_profiles(self, limits: BuildLimits) -> tuple[Profile, ...]:
        vision = self.config["vision_config"]
        num_patches = (vision["image_size"] // vision["patch_size"]) ** 2
        return ({"P": (1, 1, max(1, limits.max_shared_patches // num_patches))},)

    def tower(self, precision: Precision) -> nn.Module:
        return _Visual(self.config, precision)

    def decoder(self, precision: Precision, limits: BuildLimits) -> tuple[ir.Model, GraphSpec]:
        return build_decoder(self._decoder_config(limits), precision)

    def cross_attention(
        self, precision: Precision, limits: BuildLimits
    ) -> tuple[ir.Model, GraphSpec] | None:
        cross = self._decoder_config(limits).cross_attention
        return None if cross is None else build_cross_attention(cross, precision)

    def _decoder_config(self, limits: BuildLimits) -> DecoderConfig:
        text, vision = self.config["text_config"], self.config["vision_config"]
        # The checkpoints have a head of their own whatever the config says.
        common = common_config(text, limits.max_model_len, tied_embeddings=False, qkv_bias=False)
        layers = tuple(i for i in text["cross_attention_layers"] if i < text["num_hidden_layers"])
        cross = CrossAttentionConfig(
            layers=layers,
            capacity=limits.max_images * vision["max_num_tiles"] * num_tile_tokens(vision),
            hidden_size=common.hidden_size,
            intermediate_size=common.intermediate_size,
            num_heads=common.num_heads,
            num_kv_heads=common.num_kv_heads,
            head_dim=common.head_dim,
            norm_epsilon=common.norm_epsilon,
            activation=common.activation,
        )
        return replace(
            common,
            num_embeddings=common.vocab_size + _NUM_MORE_TOKENS,
            cross_attention=cross if layers else None,
        )

    def reference_inputs(self, images: Sequence[Features]) -> dict[str, np.ndarray]:
        num_tiles = np.array([len(image["pixel_values"]) for image in images])
        max_tiles = self.config["vision_config"]["max_num_tiles"]
        pixels = np.zeros(
            (len(images), max_tiles, *images[0]["pixel_values"].shape[1:]), np.float32
        )
        for row, image in zip(pixels, images, strict=True):
            row[: len(image["pixel_values"])] = image["pixel_values"]
        ids = np.concatenate([image["aspect_ratio_ids"] for image in images])
        mask = (np.arange(max_tiles) < num_tiles[:, None]).astype(np.int64)
        return {
            "pixel_values": pixels[None],
            "aspect_ratio_ids": ids[None],
            "aspect_ratio_mask": mask[None],
        }

    def reference_prompt_inputs(
        self, token_ids: np.ndarray, images: Sequence[Features]
    ) -> dict[str, np.ndarray]:
        # Transformers' own code, so that verification has another opinion than the serving side.
        from transformers.models.mllama import processing_mllama as processing

        seen = processing.get_cross_attention_token_mask(
            token_ids.tolist(), self.config["image_token_index"]
        )
        mask = processing.convert_sparse_cross_attention_mask_to_dense(
            [seen],
            num_tiles=[[len(image["pixel_values"]) for image in images]],
            max_num_tiles=self.config["vision_config"]["max_num_tiles"],
            length=len(token_ids),
        )
        return {"cross_attention_mask": mask}

    def reference_embeds(self, model: Any, inputs: Mapping[str, Any]) -> list[Any]:
        states = model.model.vision_model(**inputs).last_hidden_state
        embeds = model.model.multi_modal_projector(states)
        return [embeds.reshape(1, -1, embeds.shape[-1])]

    def checkpoint_names(self, path: str) -> tuple[str, ...]:
        return nested_names(path, is_tied=False)


class _TileEmbedding(nn.Module):
    """One vector per tile of a picture, by the picture's aspect ratio."""

    def __init__(self, config: Mapping[str, Any], precision: Precision) -> None:
        super().__init__()
        self._shape = [-1, config["max_num_tiles"], 1, config["hidden_size"]]
        size = config["max_num_tiles"] * config["hidden_size"]
        self.embedding = Embedding(precision.unquantized, _num_ratios(config) + 1, size)
        self.gate = Weight([1], precision.compute)

    def forward(self, op: Op, x: ir.Value, ratio_ids: ir.Value) -> ir.Value:
        """X [P, T, N, H]."""
        embeds = op.Reshape(self.embedding(op, ratio_ids), self._shape)
        return op.Add(x, op.Mul(embeds, op.Tanh(self.gate)))


class _PositionEmbedding(nn.Module):
    """One vector per token of a tile, and one per token of every tile by the picture's aspect ratio."""

    def __init__(self, config: Mapping[str, Any], precision: Precision) -> None:
        super().__init__()
        num_tokens, hidden = num_tile_tokens(config), config["hidden_size"]
        self._shape = [-1, config["max_num_tiles"], num_tokens, hidden]
        size = config["max_num_tiles"] * num_tokens * hidden
        self.gate = Weight([1], precision.compute)
        self.embedding = Weight([num_tokens, hidden], precision.compute)
        self.tile_embedding = Embedding(precision.unquantized, _num_ratios(config) + 1, size)

    def forward(self, op: Op, x: ir.Value, ratio_ids: ir.Value) -> ir.Value:
        """X [P, T, N, H]."""
        share = op.Tanh(self.gate)
        positions = op.Mul(op.Sub(op.CastLike(1.0, share), share), self.embedding)
        tiles = op.Reshape(self.tile_embedding(op, ratio_ids), self._shape)
        return op.Add(op.Add(x, positions), op.Mul(share, tiles))


class _Attention(nn.Module):
    def __init__(self, config: Mapping[str, Any], precision: Precision) -> None:
        super().__init__()
        self._hidden, self._heads = config["hidden_size"], config["attention_heads"]
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            Linear(precision, self._hidden, self._hidden) for _ in range(4)
        )

    def forward(self, op: Op, x: ir.Value, mask: ir.Value) -> ir.Value:
        parts = [proj(op, x) for proj in (self.q_proj, self.k_proj, self.v_proj)]
        return self.o_proj(op, attend(op, parts, self._heads, self._hidden, mask))


class _Layer(nn.Module):
    def __init__(self, config: Mapping[str, Any], precision: Precision, *, is_gated: bool) -> None:
        super().__init__()
        hidden, epsilon = config["hidden_size"], config["norm_eps"]
        self.input_layernorm = LayerNorm(precision, hidden, epsilon)
        self.post_attention_layernorm = LayerNorm(precision, hidden, epsilon)
        self.self_attn = _Attention(config, precision)
        self.mlp = MLP(
            precision, hidden, config["intermediate_size"], activation=config["hidden_act"]
        )
        self._is_gated = is_gated
        if is_gated:
            self.gate_attn = Weight([1], precision.compute)
            self.gate_ffn = Weight([1], precision.compute)

    def forward(self, op: Op, x: ir.Value, mask: ir.Value) -> ir.Value:
        y = self.self_attn(op, self.input_layernorm(op, x), mask)
        x = op.Add(x, op.Mul(op.Tanh(self.gate_attn), y) if self._is_gated else y)
        y = self.mlp(op, self.post_attention_layernorm(op, x))
        return op.Add(x, op.Mul(op.Tanh(self.gate_ffn), y) if self._is_gated else y)


class _Encoder(nn.Module):
    def __init__(
        self, config: Mapping[str, Any], precision: Precision, num_layers: int, *, is_gated: bool
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [_Layer(config, precision, is_gated=is_gated) for _ in range(num_layers)]
        )

    def forward(self, op: Op, x: ir.Value, mask: ir.Value) -> list[ir.Value]:
        """What comes out of every layer."""
        states = []
        for layer in self.layers:
            x = layer(op, x, mask)
            states.append(x)
        return states


class _Tower(nn.Module):
    """Pictures [P, T, C, R, R] to features [P, T, N, (1 + intermediate layers) * H].

    Tiles and tokens that only fill up are computed too: real tokens attend to them.
    """

    def __init__(self, config: Mapping[str, Any], precision: Precision) -> None:
        super().__init__("vision_model")
        self._config, hidden = config, config["hidden_size"]
        self._num_tokens = num_tile_tokens(config)
        self._num_padded = -(-self._num_tokens // _TILE_MULTIPLE) * _TILE_MULTIPLE
        self.patch_embedding = PatchEmbedding(config, precision, bias=False)
        self.class_embedding = Weight([hidden], precision.compute)
        self.gated_positional_embedding = _PositionEmbedding(config, precision)
        self.pre_tile_positional_embedding = _TileEmbedding(config, precision)
        self.post_tile_positional_embedding = _TileEmbedding(config, precision)
        self.layernorm_pre = LayerNorm(precision, hidden, _NORM_EPSILON)
        self.layernorm_post = LayerNorm(precision, hidden, _NORM_EPSILON)
        self.transformer = _Encoder(config, precision, config["num_hidden_layers"], is_gated=False)
        self.global_transformer = _Encoder(
            config, precision, config["num_global_layers"], is_gated=True
        )

    def forward(self, op: Op, pixels: ir.Value, ratio_ids: ir.Value) -> ir.Value:
        config, hidden, tiles = (
            self._config,
            self._config["hidden_size"],
            self._config["max_num_tiles"],
        )
        side, length = config["image_size"], tiles * self._num_padded
        x = self.patch_embedding(op, op.Reshape(pixels, [-1, config["num_channels"], side, side]))
        x = op.Reshape(x, [-1, tiles, self._num_tokens - 1, hidden])
        x = self.pre_tile_positional_embedding(op, x, ratio_ids)
        one_each = op.Concat(op.Shape(x, start=0, end=2), [1, hidden], axis=0)
        classes = op.Expand(self.class_embedding, one_each)
        x = op.Concat(classes, x, axis=2)
        x = self.layernorm_pre(op, self.gated_positional_embedding(op, x, ratio_ids))
        x = op.Pad(x, [0, 0, 0, 0, 0, 0, self._num_padded - self._num_tokens, 0])
        mask = self._mask(op, ratio_ids)
        states = self.transformer(op, op.Reshape(x, [-1, length, hidden]), mask)
        x = op.Reshape(self.layernorm_post(op, states[-1]), [-1, tiles, self._num_padded, hidden])
        x = self.post_tile_positional_embedding(op, x, ratio_ids)
        last = self.global_transformer(op, op.Reshape(x, [-1, length, hidden]), mask)[-1]
        # Numbers of the intermediate layers are interleaved: the layer is the last axis.
        between = op.Concat(
            *(op.Unsqueeze(states[i], [-1]) for i in config["intermediate_layers_indices"]), axis=-1
        )
        num_between = len(config["intermediate_layers_indices"]) * hidden
        x = op.Concat(last, op.Reshape(between, [0, 0, num_between]), axis=-1)
        x = op.Reshape(x, [-1, tiles, self._num_padded, hidden + num_between])
        return op.Slice(x, [0], [self._num_tokens], [2])

    def _mask(self, op: Op, ratio_ids: ir.Value) -> ir.Value:
        """Who sees whom, bool [P, 1, T * L, T * L]: all but what fills up, from what fills up.

        Source: `_prepare_aspect_ratio_attention_mask` in transformers 5.23.
        """
        config, tiles = self._config, self._config["max_num_tiles"]
        ratios = np.array(config["supported_aspect_ratios"]).prod(axis=1)
        # Of aspect ratio 0, which stands for no picture, no tile is used.
        num_used = constant(op, np.concatenate([[0], ratios]), "num_used_tiles")
        used = op.Unsqueeze(op.Gather(num_used, ratio_ids), [1, 2, 3])
        # The tile of each token; one that fills up a tile belongs to none.
        tile = np.full((tiles, self._num_padded), tiles)
        tile[:, : self._num_tokens] = np.arange(tiles)[:, None]
        query = constant(op, tile.reshape(1, 1, -1, 1), "query_tiles")
        key = constant(op, tile.reshape(1, 1, 1, -1), "key_tiles")
        return op.Or(op.Less(query, used), op.Less(key, used))


class _Visual(nn.Module):
    def __init__(self, config: Mapping[str, Any], precision: Precision) -> None:
        super().__init__()
        vision, hidden = config["vision_config"], config["text_config"]["hidden_size"]
        size = (1 + len(vision["intermediate_layers_indices"])) * vision["hidden_size"]
        if size != vision["vision_output_dim"]:
            raise BundleError(
                f"vision_output_dim is {vision['vision_output_dim']}, the tower gives {size} numbers"
            )
        self._size = size
        self.vision_model = _Tower(vision, precision)
        self.multi_modal_projector = Linear(precision, size, hidden, bias=True)

    def forward(self, op: Op, feeds: dict[str, ir.Value]) -> ir.Value:
        x = self.vision_model(op, feeds["pixel_values"], feeds["aspect_ratio_ids"])
        return self.multi_modal_projector(op, op.Reshape(x, [-1, self._size]))


def _num_ratios(config: Mapping[str, Any]) -> int:
    return len(config["supported_aspect_ratios"])
