"""Tiny checkpoints of the Qwen-VL line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tests.tiny.shape import Shape
from tests.tiny.tokenizer import NUM_TOKENS, TOKEN_IDS
from tests.tiny.tool_templates import HERMES, HERMES_THINKING

VOCAB_SIZE = NUM_TOKENS + 22  # as in the real ones, the table has rows that no token uses
MAX_POSITIONS = 2048

_TOKENS = {
    "bos_token_id": TOKEN_IDS["<|endoftext|>"],
    "eos_token_id": TOKEN_IDS["<|im_end|>"],
    "vision_start_token_id": TOKEN_IDS["<|vision_start|>"],
    "vision_end_token_id": TOKEN_IDS["<|vision_end|>"],
    "vision_token_id": TOKEN_IDS["<|vision_pad|>"],
    "image_token_id": TOKEN_IDS["<|image_pad|>"],
    "video_token_id": TOKEN_IDS["<|video_pad|>"],
}
_PATCHES = {
    "in_channels": 3,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "torch_dtype": "bfloat16",
}
# The first two of the line have other names on the hub than transformers 5 gives them.
_OLD_NAMES = {"model.language_model.": "model.", "model.visual.": "visual."}


def _text(
    *,
    hidden: int,
    layers: int,
    heads: int,
    kv_heads: int,
    intermediate: int,
    sections: Sequence[int],
    **more: Any,
) -> dict[str, Any]:
    return {
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": MAX_POSITIONS,
        "rms_norm_eps": 1e-06,
        "use_cache": True,
        "vocab_size": VOCAB_SIZE,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": intermediate,
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": list(sections)},
        **more,
    }


def _preprocessor(patch: int, processor: str) -> dict[str, Any]:
    side = 2 * patch
    return {
        "min_pixels": 4 * side**2,
        "max_pixels": 64 * side**2,
        "patch_size": patch,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": processor,
    }


def _flat(architecture: str, model_type: str, text: dict[str, Any], vision: dict[str, Any]) -> Any:
    """config.json as the first two of the line have it: text fields at the top level."""
    return {
        "architectures": [architecture],
        "model_type": model_type,
        **_TOKENS,
        "max_window_layers": text["num_hidden_layers"],
        "sliding_window": MAX_POSITIONS,
        "use_sliding_window": False,
        "torch_dtype": "bfloat16",
        **text,
        "vision_config": {"model_type": model_type, **_PATCHES, **vision},
    }


def _qwen2_5_vl(name: str, text: dict[str, Any], vision: dict[str, Any], **more: Any) -> Shape:
    vision = {
        "hidden_act": "silu",
        "in_chans": 3,
        "tokens_per_second": 2,
        "spatial_patch_size": vision["patch_size"],
        "out_hidden_size": text["hidden_size"],
        **vision,
    }
    return Shape(
        name=name,
        config=_flat("Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl", text, vision),
        preprocessor=_preprocessor(vision["patch_size"], "Qwen2_5_VLProcessor"),
        hub_names=_OLD_NAMES,
        **more,
    )


def _qwen2_vl(name: str, text: dict[str, Any], vision: dict[str, Any], **more: Any) -> Shape:
    vision = {"hidden_size": text["hidden_size"], **vision}
    return Shape(
        name=name,
        config=_flat("Qwen2VLForConditionalGeneration", "qwen2_vl", text, vision),
        preprocessor=_preprocessor(vision["patch_size"], "Qwen2VLProcessor"),
        hub_names=_OLD_NAMES,
        **more,
    )


def _qwen3_vl(
    name: str, text: dict[str, Any], vision: dict[str, Any], *, tied: bool, **more: Any
) -> Shape:
    config = {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        **_TOKENS,
        "tie_word_embeddings": tied,
        "text_config": {
            "model_type": "qwen3_vl_text",
            "eos_token_id": TOKEN_IDS["<|im_end|>"],
            "dtype": "bfloat16",
            **text,
        },
        "vision_config": {
            "model_type": "qwen3_vl",
            **_PATCHES,
            "out_hidden_size": text["hidden_size"],
            **vision,
        },
    }
    rope = config["text_config"].pop("rope_scaling")
    config["text_config"]["rope_scaling"] = {
        "mrope_interleaved": True,
        "mrope_section": rope["mrope_section"],
        "rope_type": "default",
    }
    preprocessor = _preprocessor(vision["patch_size"], "Qwen3VLProcessor")
    preprocessor |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    side = 2 * vision["patch_size"]
    return Shape(
        name=name,
        config=config,
        preprocessor=preprocessor,
        video_preprocessor={
            **preprocessor,
            "size": {"shortest_edge": 8 * side**2, "longest_edge": 28 * side**2},
            "video_processor_type": "Qwen3VLVideoProcessor",
        },
        **more,
    )


# What TensorRT has attention kernels for: heads of 32 or more, and four query heads for decoding
# (with two or three, TensorRT-RTX 1.7.1 refuses an S of 1).
TIED = _qwen2_5_vl(
    "tiny-tied",
    _text(
        hidden=128,
        layers=2,
        heads=4,
        kv_heads=2,
        intermediate=96,
        sections=(4, 6, 6),
        tie_word_embeddings=True,
    ),
    {
        "depth": 3,
        "hidden_size": 64,
        "num_heads": 2,
        "intermediate_size": 80,
        "fullatt_block_indexes": [1],
        "patch_size": 14,
        "window_size": 112,
    },
)

SHARDED = _qwen2_5_vl(
    "tiny-sharded",
    _text(
        hidden=96,
        layers=3,
        heads=6,
        kv_heads=2,
        intermediate=136,
        sections=(2, 3, 3),
        tie_word_embeddings=False,
    ),
    {
        "depth": 4,
        "hidden_size": 48,
        "num_heads": 3,
        "intermediate_size": 72,
        "fullatt_block_indexes": [0, 3],
        "patch_size": 8,
        "window_size": 32,
    },
    num_files=2,
    seed=1,
)

SAVED = _qwen2_5_vl(
    "tiny-saved",
    _text(
        hidden=80,
        layers=1,
        heads=2,
        kv_heads=2,
        intermediate=112,
        sections=(8, 6, 6),
        tie_word_embeddings=False,
    ),
    {
        "depth": 2,
        "hidden_size": 40,
        "num_heads": 1,
        "intermediate_size": 64,
        "fullatt_block_indexes": [0],
        "patch_size": 10,
        "window_size": 60,
    },
    layout="transformers",
    seed=2,
)

QWEN2_5_VL = (TIED, SHARDED, SAVED)

QWEN2_VL = (
    _qwen2_vl(
        "tiny-qwen2-vl",
        _text(
            hidden=128,
            layers=2,
            heads=4,
            kv_heads=2,
            intermediate=96,
            sections=(4, 6, 6),
            tie_word_embeddings=True,
        ),
        {"depth": 2, "embed_dim": 64, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14},
    ),
    _qwen2_vl(
        "tiny-qwen2-vl-untied",
        _text(
            hidden=96,
            layers=3,
            heads=6,
            kv_heads=3,
            intermediate=120,
            sections=(2, 3, 3),
            tie_word_embeddings=False,
        ),
        {"depth": 3, "embed_dim": 48, "num_heads": 3, "mlp_ratio": 3, "patch_size": 8},
        layout="transformers",
        seed=1,
    ),
)

QWEN3_VL = (
    _qwen3_vl(
        "tiny-qwen3-vl",
        _text(
            hidden=128,
            layers=3,
            heads=4,
            kv_heads=2,
            intermediate=96,
            sections=(8, 4, 4),
            head_dim=32,
        ),
        {
            "depth": 4,
            "hidden_size": 64,
            "num_heads": 2,
            "intermediate_size": 88,
            "deepstack_visual_indexes": [0, 2],
            "num_position_embeddings": 36,
            "patch_size": 16,
        },
        tied=True,
        seed=9,
    ),
    _qwen3_vl(
        "tiny-qwen3-vl-untied",
        _text(
            hidden=72,
            layers=4,
            heads=4,
            kv_heads=4,
            intermediate=100,
            sections=(6, 5, 5),
            # A head larger than its share of the hidden size, as in the 8B and larger ones.
            head_dim=32,
            attention_bias=True,
        ),
        {
            "depth": 3,
            "hidden_size": 48,
            "num_heads": 3,
            "intermediate_size": 60,
            "deepstack_visual_indexes": [1, 2, 0],
            "num_position_embeddings": 25,
            "patch_size": 8,
        },
        tied=False,
        layout="transformers",
    ),
)

TOOLS = replace(QWEN3_VL[0], name="tiny-qwen3-vl-tools", chat_template=HERMES)
THINKING = replace(
    QWEN3_VL[0],
    name="tiny-qwen3-vl-thinking",
    chat_template=HERMES_THINKING,
    more_visible=("<think>", "</think>"),
)
