"""Tiny random checkpoints, made on the spot: no download, the same on every machine.

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
from transformers import AutoConfig

from tests.tiny.shape import Shape
from tests.tiny.tokenizer import TOKEN_IDS, write_tokenizer


def make_checkpoint(folder: Path, shape: Shape) -> Path:
    """Write a whole checkpoint of `shape` into `folder`, which is made; returns it."""
    folder.mkdir(parents=True)
    write_tokenizer(folder, shape.more_special, shape.chat_template, shape.more_visible)
    if shape.preprocessor is not None:
        _write_json(folder / "preprocessor_config.json", shape.preprocessor)
    if shape.video_preprocessor is not None:
        _write_json(folder / "video_preprocessor_config.json", shape.video_preprocessor)
    _write_json(folder / "config.json", shape.config)
    config = AutoConfig.from_pretrained(folder)
    if shape.layout == "hub":
        with torch.device("meta"):
            model = shape.auto_class.from_config(config)
        tensors = _tensors(model, shape.seed)
        if config.tie_word_embeddings:
            tensors.pop("lm_head.weight", None)
        tensors = {_hub_name(name, shape.hub_names): t for name, t in tensors.items()}
        _write_shards(folder, tensors, shape.num_files)
    else:
        model = shape.auto_class.from_config(config)
        model.load_state_dict(_tensors(model, shape.seed), strict=False)
        model.to(torch.bfloat16).save_pretrained(folder)
    _write_json(folder / "generation_config.json", _generation_config())
    return folder


def _generation_config() -> dict[str, Any]:
    return {
        "bos_token_id": TOKEN_IDS["<|endoftext|>"],
        "pad_token_id": TOKEN_IDS["<|endoftext|>"],
        "eos_token_id": [TOKEN_IDS["<|im_end|>"], TOKEN_IDS["<|endoftext|>"]],
        "do_sample": False,
    }


def _tensors(model: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Random values for every parameter, each from its own name and the seed."""
    return {
        name: torch.from_numpy(_random(name, tuple(parameter.shape), seed)).to(torch.bfloat16)
        for name, parameter in model.named_parameters()
    }


def _random(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    rng = np.random.default_rng([zlib.crc32(name.encode()), seed])
    mean, std = 0.0, math.prod(shape[1:]) ** -0.5
    if name.endswith(".bias") or "embed" in name or "newline" in name:
        std = 0.1
    elif "norm" in name or name.endswith("ln_q.weight"):
        mean, std = 1.0, 0.1
    elif "q_proj" in name or "k_proj" in name or "qkv" in name:
        std *= 1.5
    return rng.normal(mean, std, shape).astype(np.float32)


def _hub_name(name: str, hub_names: Mapping[str, str]) -> str:
    """The name that the hub's checkpoints have for what transformers 5 calls `name`."""
    for new, old in hub_names.items():
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
