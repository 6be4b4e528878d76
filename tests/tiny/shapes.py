"""The shapes of the tiny checkpoints: as unlike each other as the family allows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One tiny Qwen2.5-VL.

    Attributes:
        name: of the folder.
        layout: `hub` (flat config.json, `visual.*` and `model.*`, as the checkpoints on the hub) or
            `transformers` (what `save_pretrained` of transformers 5 writes).
        num_files: safetensors files; more than one come with an index.
        tied: whether the output head is the embedding table.
        hidden_size: of the decoder.
        num_layers: of the decoder.
        num_heads: query heads.
        num_kv_heads: key-value heads.
        intermediate_size: of the decoder's MLP.
        mrope_section: frequencies per axis, together half a head.
        vision_hidden_size: of the tower.
        vision_depth: of the tower.
        vision_num_heads: of the tower.
        vision_intermediate_size: of the tower's MLP.
        full_attention_blocks: tower blocks without windows.
        patch_size: in pixels.
        window_size: in pixels.
        seed: of the weights.
    """

    name: str
    layout: Literal["hub", "transformers"] = "hub"
    num_files: int = 1
    tied: bool = True
    hidden_size: int = 128
    num_layers: int = 2
    num_heads: int = 4
    num_kv_heads: int = 2
    intermediate_size: int = 96
    mrope_section: tuple[int, int, int] = (4, 6, 6)
    vision_hidden_size: int = 64
    vision_depth: int = 3
    vision_num_heads: int = 2
    vision_intermediate_size: int = 80
    full_attention_blocks: tuple[int, ...] = (1,)
    patch_size: int = 14
    window_size: int = 112
    seed: int = 0


# What TensorRT has attention kernels for: heads of 32 or more, and four query heads for decoding
# (with two or three, TensorRT-RTX 1.7.1 refuses an S of 1).
TIED = Shape(name="tiny-tied")

SHARDED = Shape(
    name="tiny-sharded",
    num_files=2,
    tied=False,
    hidden_size=96,
    num_layers=3,
    num_heads=6,
    num_kv_heads=2,
    intermediate_size=136,
    mrope_section=(2, 3, 3),
    vision_hidden_size=48,
    vision_depth=4,
    vision_num_heads=3,
    vision_intermediate_size=72,
    full_attention_blocks=(0, 3),
    patch_size=8,
    window_size=32,
    seed=1,
)

SAVED = Shape(
    name="tiny-saved",
    layout="transformers",
    tied=False,
    hidden_size=80,
    num_layers=1,
    num_heads=2,
    num_kv_heads=2,
    intermediate_size=112,
    mrope_section=(8, 6, 6),
    vision_hidden_size=40,
    vision_depth=2,
    vision_num_heads=1,
    vision_intermediate_size=64,
    full_attention_blocks=(0,),
    patch_size=10,
    window_size=60,
    seed=2,
)

SHAPES = {shape.name: shape for shape in (TIED, SHARDED, SAVED)}
