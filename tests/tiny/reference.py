"""What Hugging Face makes of a conversation, with none of this project's code in between."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoTokenizer, GenerationConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

_PLACEHOLDER = "<|image_pad|>"


def hf_inputs(checkpoint: Path, messages: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Inputs of the Hugging Face model, as `Qwen2_5_VLProcessor` of transformers 5.23 makes them.

    (Not that class itself, because it wants torchvision for videos.)
    """
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    parts = [p for m in messages if isinstance(m["content"], list) for p in m["content"]]
    images = [Image.open(io.BytesIO(p["image"])) for p in parts if p["type"] == "image"]
    inputs = {}
    if images:
        processor = Qwen2VLImageProcessorPil.from_pretrained(checkpoint)
        inputs = dict(processor(images=images, return_tensors="pt"))
        for grid in inputs["image_grid_thw"]:
            text = text.replace(_PLACEHOLDER, "<|placeholder|>" * (int(grid.prod()) // 4), 1)
        text = text.replace("<|placeholder|>", _PLACEHOLDER)
    input_ids = tokenizer(text, return_tensors="pt")["input_ids"]
    is_image = input_ids == tokenizer.convert_tokens_to_ids(_PLACEHOLDER)
    return {"input_ids": input_ids, "mm_token_type_ids": is_image.int(), **inputs}


def hf_greedy(
    model: Any, inputs: Mapping[str, torch.Tensor], num_tokens: int
) -> tuple[list[int], float]:
    """Greedy tokens, and the smallest lead that a chosen token has over the second."""
    with torch.no_grad():
        output = model.generate(
            **inputs,
            attention_mask=torch.ones_like(inputs["input_ids"]),
            generation_config=GenerationConfig(
                do_sample=False,
                max_new_tokens=num_tokens,
                pad_token_id=0,
                return_dict_in_generate=True,
                output_logits=True,
            ),
        )
    tokens = output.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    top = torch.cat(output.logits).topk(2).values
    return tokens, float((top[:, 0] - top[:, 1]).min())
