"""Lay out the default model as a Qwen2.5-VL checkpoint, as those on the hub are.

config.json is flat, tensors have the hub's names (`model.layers.*`, `visual.*`) and are bfloat16,
and the tied `lm_head.weight` is left out. Old and new transformers read that layout.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizer import SPECIAL_IDS, VOCAB_SIZE, train_tokenizer, write_json, write_tokenizer
from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration

HIDDEN_SIZE = 256
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "model_type": "qwen2_5_vl",
    "attention_dropout": 0.0,
    "bos_token_id": SPECIAL_IDS["<|endoftext|>"],
    "eos_token_id": SPECIAL_IDS["<|im_end|>"],
    "vision_start_token_id": SPECIAL_IDS["<|vision_start|>"],
    "vision_end_token_id": SPECIAL_IDS["<|vision_end|>"],
    "vision_token_id": SPECIAL_IDS["<|vision_pad|>"],
    "image_token_id": SPECIAL_IDS["<|image_pad|>"],
    "video_token_id": SPECIAL_IDS["<|video_pad|>"],
    "hidden_act": "silu",
    "hidden_size": HIDDEN_SIZE,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.02,
    "max_position_embeddings": 2048,
    "max_window_layers": 4,
    "rms_norm_eps": 1e-06,
    # A question is matched with what it is about by content, which needs frequencies that hardly turn
    # over a prompt. Rows and columns are told apart by the vision tower.
    "rope_theta": 10000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
    "sliding_window": 2048,
    "use_sliding_window": False,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": VOCAB_SIZE,
    "vision_config": {
        "model_type": "qwen2_5_vl",
        "depth": 4,
        "hidden_size": 192,
        "num_heads": 6,
        "intermediate_size": 512,
        "fullatt_block_indexes": [1, 3],
        "hidden_act": "silu",
        "in_chans": 3,
        "in_channels": 3,
        "patch_size": 14,
        "spatial_patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "tokens_per_second": 2,
        "window_size": 112,
        "out_hidden_size": HIDDEN_SIZE,
        "torch_dtype": "bfloat16",
    },
}
PREPROCESSOR = {
    # Every picture becomes about 112 pixels wide and high, which is all that was trained on.
    "min_pixels": 112 * 84,
    "max_pixels": 112 * 112,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2_5_VLProcessor",
}
GENERATION = {
    "bos_token_id": SPECIAL_IDS["<|endoftext|>"],
    "pad_token_id": SPECIAL_IDS["<|endoftext|>"],
    "eos_token_id": [SPECIAL_IDS["<|im_end|>"], SPECIAL_IDS["<|endoftext|>"]],
    "do_sample": False,
}


def write_layout(folder: Path) -> None:
    """Write everything but the weights; a tokenizer that is there already stays."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", CONFIG)
    write_json(folder / "generation_config.json", GENERATION)
    write_json(folder / "preprocessor_config.json", PREPROCESSOR)
    if not (folder / "tokenizer.json").exists():
        write_tokenizer(train_tokenizer(), folder)


def new_model(folder: Path, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """Make an untrained float32 model from the config.json in `folder`."""
    torch.manual_seed(seed)
    config = AutoConfig.from_pretrained(folder)
    config.dtype = torch.float32
    model = Qwen2_5_VLForConditionalGeneration(config).float()
    model.tie_weights()
    return model


def load_model(folder: Path) -> Qwen2_5_VLForConditionalGeneration:
    """Load the checkpoint as it is served: bfloat16 weights, float32 compute."""
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()


def hub_name(name: str) -> str:
    """The hub's name for a parameter of transformers 5."""
    for new, old in (("model.language_model.", "model."), ("model.visual.", "visual.")):
        if name.startswith(new):
            return old + name[len(new) :]
    return name


def write_weights(model: Qwen2_5_VLForConditionalGeneration, folder: Path) -> int:
    """Write the weights, rounded to bfloat16, and return how many there are."""
    tensors = {
        hub_name(name): parameter.detach().to(torch.bfloat16).contiguous()
        for name, parameter in model.named_parameters()
        if name != "lm_head.weight"
    }
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    return sum(tensor.numel() for tensor in load_file(folder / "model.safetensors").values())
