"""Tiny random Qwen2.5-VL checkpoints, made on the spot: no download, the same on every machine.

The weights are random but not degenerate: norms and biases are not left at 1 and 0, so that a graph
that drops one is caught, and attention scores are wide enough that the picture and the beginning of
the prompt change the greedy output.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tests.tiny.shapes import Shape
from tests.tiny.tokenizer import NUM_TOKENS, TOKEN_IDS, write_tokenizer

VOCAB_SIZE = NUM_TOKENS + 22  # as in the real ones, the table has rows that no token uses
MAX_POSITIONS = 2048


def make_checkpoint(folder: Path, shape: Shape) -> Path:
    """Write a whole checkpoint of `shape` into `folder`, which is made; returns it."""
    folder.mkdir(parents=True)
    write_tokenizer(folder)
    config = _hub_config(shape)
    _write_json(folder / "generation_config.json", _generation_config())
    _write_json(folder / "preprocessor_config.json", _preprocessor_config(shape))
    if shape.layout == "hub":
        _write_json(folder / "config.json", config)
        _write_shards(folder, _hub_tensors(config, shape.seed), shape.num_files)
    else:
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**config))
        model.load_state_dict(_tensors(model, shape.seed), strict=False)
        model.to(torch.bfloat16).save_pretrained(folder)
        _write_json(folder / "generation_config.json", _generation_config())
    return folder


def _hub_config(shape: Shape) -> dict[str, Any]:
    """config.json as the hub's Qwen2.5-VL checkpoints have it: text fields at the top level."""
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "attention_dropout": 0.0,
        "bos_token_id": TOKEN_IDS["<|endoftext|>"],
        "eos_token_id": TOKEN_IDS["<|im_end|>"],
        "vision_start_token_id": TOKEN_IDS["<|vision_start|>"],
        "vision_end_token_id": TOKEN_IDS["<|vision_end|>"],
        "vision_token_id": TOKEN_IDS["<|vision_pad|>"],
        "image_token_id": TOKEN_IDS["<|image_pad|>"],
        "video_token_id": TOKEN_IDS["<|video_pad|>"],
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": MAX_POSITIONS,
        "max_window_layers": shape.num_layers,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": list(shape.mrope_section)},
        "sliding_window": MAX_POSITIONS,
        "use_sliding_window": False,
        "tie_word_embeddings": shape.tied,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": VOCAB_SIZE,
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "intermediate_size": shape.intermediate_size,
        "vision_config": {
            "model_type": "qwen2_5_vl",
            "hidden_act": "silu",
            "in_chans": 3,
            "in_channels": 3,
            "patch_size": shape.patch_size,
            "spatial_patch_size": shape.patch_size,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
            "window_size": shape.window_size,
            "out_hidden_size": shape.hidden_size,
            "torch_dtype": "bfloat16",
            "depth": shape.vision_depth,
            "hidden_size": shape.vision_hidden_size,
            "num_heads": shape.vision_num_heads,
            "intermediate_size": shape.vision_intermediate_size,
            "fullatt_block_indexes": list(shape.full_attention_blocks),
        },
    }


def _preprocessor_config(shape: Shape) -> dict[str, Any]:
    side = 2 * shape.patch_size
    return {
        "min_pixels": 4 * side**2,
        "max_pixels": 64 * side**2,
        "patch_size": shape.patch_size,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
    }


def _generation_config() -> dict[str, Any]:
    return {
        "bos_token_id": TOKEN_IDS["<|endoftext|>"],
        "pad_token_id": TOKEN_IDS["<|endoftext|>"],
        "eos_token_id": [TOKEN_IDS["<|im_end|>"], TOKEN_IDS["<|endoftext|>"]],
        "do_sample": False,
    }


def _hub_tensors(config: Mapping[str, Any], seed: int) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**config))
    tensors = _tensors(model, seed)
    if config["tie_word_embeddings"]:
        tensors.pop("lm_head.weight", None)
    return {_hub_name(name): tensor for name, tensor in tensors.items()}


def _tensors(model: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Random values for every parameter, each from its own name and the seed."""
    return {
        name: torch.from_numpy(_random(name, tuple(parameter.shape), seed)).to(torch.bfloat16)
        for name, parameter in model.named_parameters()
    }


def _random(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    rng = np.random.default_rng([zlib.crc32(name.encode()), seed])
    mean, std = 0.0, math.prod(shape[1:]) ** -0.5
    if "norm" in name or name.endswith("ln_q.weight"):
        mean, std = 1.0, 0.1
    elif name.endswith(".bias") or "embed_tokens" in name:
        std = 0.1
    elif "q_proj" in name or "k_proj" in name or "qkv" in name:
        std *= 1.5
    return rng.normal(mean, std, shape).astype(np.float32)


def _hub_name(name: str) -> str:
    """The name that the hub's checkpoints have for what transformers 5 calls `name`."""
    for new, old in (("model.language_model.", "model."), ("model.visual.", "visual.")):
        if name.startswith(new):
            return old + name.removeprefix(new)
    return name


def _write_shards(folder: Path, tensors: Mapping[str, torch.Tensor], num_files: int) -> None:
    if num_files == 1:
        save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(tensors)
    weight_map = {}
    for i in range(num_files):
        file = f"model-{i + 1:05}-of-{num_files:05}.safetensors"
        shard = {name: tensors[name] for name in names[i::num_files]}
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(folder / "model.safetensors.index.json", index)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
