"""Ask a checkpoint with Hugging Face transformers, or what was built from it with this project's engine."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from checkpoint import load_model
from PIL import Image
from transformers import AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from python_backend.sampling_params import SamplingParams
from python_backend.vlm import VLM

Message = dict[str, Any]
Conversation = tuple[Sequence[Message], Sequence[Image.Image]]
MAX_NEW_TOKENS = 160


class Inference:
    """A checkpoint, loaded as it is served: bfloat16 weights, float32 eager compute, greedy."""

    def __init__(self, folder: Path) -> None:
        """Load the checkpoint in `folder`."""
        self.model = load_model(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.image_processor = Qwen2VLImageProcessorPil.from_pretrained(folder)

    def inputs(
        self, messages: Sequence[Message], images: Sequence[Image.Image]
    ) -> dict[str, torch.Tensor]:
        """Turn a conversation into the model's inputs.

        Args:
            messages: OpenAI style, with {"type": "image"} where an image is.
            images: those images, in order.
        """
        text = self.tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True
        )
        inputs: dict[str, torch.Tensor] = {}
        pieces = text.split("<|image_pad|>")
        text = pieces[0]
        if images:
            inputs = dict(self.image_processor(images=list(images), return_tensors="pt"))
            unit = self.image_processor.merge_size**2
            for grid, piece in zip(inputs["image_grid_thw"], pieces[1:], strict=True):
                text += "<|image_pad|>" * (int(grid.prod()) // unit) + piece
        input_ids = torch.tensor([self.tokenizer(text)["input_ids"]])
        inputs["input_ids"] = input_ids
        inputs["attention_mask"] = torch.ones_like(input_ids)
        inputs["mm_token_type_ids"] = (input_ids == self.model.config.image_token_id).int()
        return inputs

    @torch.no_grad()
    def generate(
        self,
        messages: Sequence[Message],
        images: Sequence[Image.Image],
        max_new_tokens: int = MAX_NEW_TOKENS,
    ) -> list[int]:
        """The answer's token ids, with the end token."""
        inputs = self.inputs(messages, images)
        generate = functools.partial(self.model.generate, **inputs)
        output = generate(max_new_tokens=max_new_tokens, do_sample=False)
        return output[0, inputs["input_ids"].shape[1] :].tolist()

    def answer(self, messages: Sequence[Message], images: Sequence[Image.Image]) -> str:
        """The answer's text."""
        return self.tokenizer.decode(self.generate(messages, images), skip_special_tokens=True)

    def answers(self, conversations: Sequence[Conversation]) -> Iterator[str]:
        """One answer after another."""
        return (self.answer(messages, images) for messages, images in conversations)


class BuiltModel:
    """A model in a Triton model repository, asked in this process, greedy."""

    def __init__(self, folder: Path) -> None:
        """Load the model in `folder`, `<model repository>/<name>`."""
        self.vlm = VLM(folder)

    def answers(self, conversations: Sequence[Conversation]) -> list[str]:
        """All of them together, in flight."""
        sampling = SamplingParams(temperature=0, max_tokens=MAX_NEW_TOKENS)
        outputs = self.vlm.generate([_with_files(*c) for c in conversations], sampling)
        return [output.text for output in outputs]


def _with_files(messages: Sequence[Message], images: Sequence[Image.Image]) -> list[Message]:
    """A conversation whose image parts hold their pictures as PNG files."""
    files = map(_png, images)
    filled = []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            content = [p | {"image": next(files)} if p["type"] == "image" else p for p in content]
        filled.append({**message, "content": content})
    return filled


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def user(*parts: str | None) -> Message:
    """A user's message; None stands for an image."""
    content = [{"type": "image"} if p is None else {"type": "text", "text": p} for p in parts]
    return {"role": "user", "content": content}


def assistant(text: str) -> Message:
    """An assistant's message."""
    return {"role": "assistant", "content": text}


def system(text: str) -> Message:
    """A system message."""
    return {"role": "system", "content": text}
