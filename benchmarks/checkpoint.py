"""A Qwen2.5-VL checkpoint of random weights, made on the spot and laid out as on the hub.

    python -m benchmarks.checkpoint --preset 05b --output build/checkpoint

Large ones come in shards, and never is more than one of them in memory. The weights are random but
not degenerate: no bias or norm weight is left at 0 or 1, so an engine that drops one is found out, and
attention scores are wide enough for picture and prompt to change the greedy tokens. They are stored in
bfloat16, which float32 holds exactly: every engine that computes in float32 should give the same tokens.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.tokenizer import VOCAB_SIZE, write_tokenizer

_SHARD_BYTES = 2 * 10**9
_DONE = "complete"
"""Empty file that is written last, so that a broken checkpoint is not taken for a whole one."""


@dataclass(frozen=True, slots=True)
class Preset:
    """Shapes of a checkpoint.

    Attributes:
        name: of the folder, and so of the built model.
        text: what config.json says of the decoder, first of all its sizes.
        vision: sizes of the vision encoder, config.json names.
    """

    name: str
    text: dict[str, Any]
    vision: dict[str, Any]


PRESETS = {
    "05b": Preset(
        "qwen2.5-vl-0.5b-random",
        # Source: config.json of Qwen/Qwen2-0.5B.
        {
            "hidden_size": 896,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "intermediate_size": 4864,
        },
        {
            "depth": 12,
            "hidden_size": 768,
            "num_heads": 12,
            "intermediate_size": 2048,
            "fullatt_block_indexes": [3, 7, 11],
        },
    ),
    "7b": Preset(
        "qwen2.5-vl-7b-random",
        # Source: config.json of Qwen/Qwen2.5-VL-7B-Instruct.
        {
            "hidden_size": 3584,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "intermediate_size": 18944,
            "vocab_size": 152064,
            "tie_word_embeddings": False,
        },
        {
            "depth": 32,
            "hidden_size": 1280,
            "num_heads": 16,
            "intermediate_size": 3420,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
    ),
    "tiny": Preset(
        "qwen2.5-vl-tiny-random",
        {
            "hidden_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 768,
        },
        {
            "depth": 4,
            "hidden_size": 128,
            "num_heads": 2,
            "intermediate_size": 384,
            "fullatt_block_indexes": [1, 3],
        },
    ),
}

_PREPROCESSOR = {
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2_5_VLProcessor",
}
_GENERATION = {
    "bos_token_id": 151643,
    "pad_token_id": 151643,
    "eos_token_id": [151645, 151643],
    "do_sample": False,
}


def make_checkpoint(preset: Preset, parent: Path, seed: int = 0) -> Path:
    """Write the checkpoint unless it is there.

    Args:
        preset: its shapes.
        parent: gets the folder `preset.name`.
        seed: of the weights; the same seed gives the same file with the same version of torch.

    Returns:
        The folder.
    """
    folder = parent / preset.name
    if (folder / _DONE).exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", hub_config(preset))
    _write_json(folder / "generation_config.json", _GENERATION)
    _write_json(folder / "preprocessor_config.json", _PREPROCESSOR)
    write_tokenizer(folder)
    _write_weights(folder, seed)
    (folder / _DONE).touch()
    return folder


def hub_config(preset: Preset) -> dict[str, Any]:
    """config.json as the hub's Qwen2.5-VL checkpoints have it, text fields at the top level."""
    eighth = preset.text["hidden_size"] // preset.text["num_attention_heads"] // 8
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "vision_token_id": 151654,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": 32768,
        "max_window_layers": preset.text["num_hidden_layers"],
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        # The sections sum to half the head size.
        "rope_scaling": {
            "type": "mrope",
            "mrope_section": [eighth, 3 * eighth // 2, 3 * eighth // 2],
        },
        "sliding_window": 32768,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": VOCAB_SIZE,
        **preset.text,
        "vision_config": {
            "model_type": "qwen2_5_vl",
            "hidden_act": "silu",
            "in_chans": 3,
            "in_channels": 3,
            "patch_size": 14,
            "spatial_patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
            "window_size": 112,
            "out_hidden_size": preset.text["hidden_size"],
            "torch_dtype": "bfloat16",
            **preset.vision,
        },
    }


def _write_weights(folder: Path, seed: int, shard_bytes: int = _SHARD_BYTES) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration

    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(config)
    hub = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    parameters = [
        (name, tuple(parameter.shape))
        for name, parameter in model.named_parameters()
        if not (hub["tie_word_embeddings"] and name == "lm_head.weight")
    ]
    shards = _shards(parameters, shard_bytes)
    generator = torch.Generator().manual_seed(seed)
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        tensors = {}
        for name, shape in shard:
            mean, std = _distribution(name, shape)
            values = torch.empty(shape).normal_(mean, std, generator=generator)
            tensors[_hub_name(name)] = values.to(torch.bfloat16)
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        file = file if len(shards) > 1 else "model.safetensors"
        save_file(tensors, str(folder / file), metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    if len(shards) > 1:
        _write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})


def _shards(
    parameters: Sequence[tuple[str, tuple[int, ...]]], shard_bytes: int
) -> list[list[tuple[str, tuple[int, ...]]]]:
    """Names and shapes by file, as many as fit into one in bfloat16."""
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    room = shard_bytes
    for name, shape in parameters:
        num_bytes = 2 * math.prod(shape)
        if num_bytes > room and shards[-1]:
            shards.append([])
            room = shard_bytes
        shards[-1].append((name, shape))
        room -= num_bytes
    return shards


def _distribution(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean and standard deviation of a parameter's values."""
    if "norm" in name or name.endswith("ln_q.weight"):
        return 1.0, 0.1
    if name.endswith(".bias"):
        return 0.0, 0.1
    if "embed_tokens" in name:
        return 0.0, 0.02
    std = math.prod(shape[1:]) ** -0.5
    if "q_proj" in name or "k_proj" in name:
        return 0.0, 1.5 * std
    if "visual" in name and "qkv" in name:
        return 0.0, 1.2 * std
    return 0.0, std


def _hub_name(name: str) -> str:
    """The hub's name of a parameter of transformers 5."""
    for new, old in (("model.language_model.", "model."), ("model.visual.", "visual.")):
        if name.startswith(new):
            return old + name[len(new) :]
    return name


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    """Make a checkpoint without running a benchmark."""
    parser = argparse.ArgumentParser(description="Make a random-weight Qwen2.5-VL checkpoint.")
    parser.add_argument("--preset", choices=PRESETS, required=True)
    parser.add_argument("--output", type=Path, required=True, help="folder that gets its folder")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    print(make_checkpoint(PRESETS[arguments.preset], arguments.output, arguments.seed))


if __name__ == "__main__":
    main()
