"""Reference cases from Hugging Face, in eager fp32. The only builder module that needs torch."""

from __future__ import annotations

import inspect
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GenerationConfig,
)

from builders.families.base import FamilyGraphs
from builders.packed import PackedLinear
from builders.precision import Precision
from builders.quantize import Quantization
from builders.verify import ReferenceCase
from python_backend.preprocess import Preprocessor

_NUM_TOKENS = 8
_QUESTION: dict[str, Any] = {"role": "user", "content": "What can you tell me about the sea?"}


def huggingface_cases(
    folder: Path,
    graphs: FamilyGraphs,
    preprocessor: Preprocessor,
    precision: Precision,
    packed: Mapping[str, PackedLinear],
) -> list[ReferenceCase]:
    """Run the checkpoint in `folder` on a text, on one picture and on two in two turns.

    On a text and on two turns of text if the model sees no images.

    Args:
        folder: the checkpoint.
        graphs: of its family.
        preprocessor: makes the model's inputs; that it equals the Hugging Face processor is shown
        by
            the tests of its family.
        precision: round weights as the builder does, so that what is compared is the
            graph and not the loss of precision that was asked for.
        packed: layers that the checkpoint has quantized, by the names of their weights.
    """
    auto_class = AutoModelForImageTextToText if graphs.sees_images else AutoModelForCausalLM
    model = _load_model(auto_class, folder, packed)
    _round_weights(model, precision)
    images = [_picture(96, 140), _picture(150, 61)]
    image: dict[str, Any] = {"type": "image"}
    text = {"type": "text", "text": "What is in this picture?"}
    one: dict[str, Any] = {"role": "user", "content": [image, text]}
    turns: list[dict[str, Any]] = [
        one,
        {"role": "assistant", "content": "Noise."},
        {"role": "user", "content": [{"type": "text", "text": "And in this one?"}, image]},
    ]
    reference = _Reference(model, graphs, preprocessor)
    text_case = reference.case("text", [_QUESTION], [])
    if not graphs.sees_images:
        answer = {"role": "assistant", "content": "It is salty."}
        return [text_case, reference.case("text in two turns", [_QUESTION, answer, _QUESTION], [])]
    return [
        text_case,
        reference.case("one image", [one], images[:1]),
        reference.case("two images in two turns", turns, images),
    ]


def _load_model(auto_class: Any, folder: Path, packed: Mapping[str, PackedLinear]) -> Any:
    """The checkpoint in eager fp32; quantized layers dequantized, with none of their methods' packages."""
    options: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager"}
    if not packed:
        return auto_class.from_pretrained(folder, **options).eval()
    config = AutoConfig.from_pretrained(folder)
    for part in (config, config.get_text_config()):
        vars(part).pop("quantization_config", None)
    weights = {name: torch.from_numpy(layer.dequantized()) for name, layer in packed.items()}
    modules = {name.removesuffix(".weight") for name in packed}
    for file in folder.glob("*.safetensors"):
        for name, tensor in load_file(file).items():
            module, _, part = name.rpartition(".")
            if module not in modules or part == "bias":
                weights[name] = tensor
    with torch.device("meta"):
        model_class = type(auto_class.from_config(config))
    return model_class.from_pretrained(None, config=config, state_dict=weights, **options).eval()


def _round_weights(model: Any, precision: Precision) -> None:
    """What `modules.Linear` and `modules.Embedding` store, as fp32."""
    if precision.weight_bits is None:
        return
    decoder = model.get_decoder()
    layers = {
        module: precision.tower for module in model.modules() if isinstance(module, torch.nn.Linear)
    }
    for path, module in decoder.named_modules():
        if module in layers:
            layers[module] = precision.attention if "_attn." in path else precision
    layers[model.get_output_embeddings()] = precision.head
    if not precision.for_tensorrt:
        layers[model.get_input_embeddings()] = precision.head
    for module, rounding in layers.items():
        quantization = Quantization.of(rounding)
        if quantization is None:
            continue
        rounded = torch.from_numpy(quantization.rounded(module.weight.detach().numpy()))
        module.weight = torch.nn.Parameter(rounded, requires_grad=False)


class _Reference:
    """The Hugging Face model, asked through the family's own preprocessing."""

    def __init__(self, model: Any, graphs: FamilyGraphs, preprocessor: Preprocessor) -> None:
        self._model, self._graphs, self._preprocessor = model, graphs, preprocessor

    def case(self, name: str, messages: list[dict[str, Any]], images: list[bytes]) -> ReferenceCase:
        prepared = self._preprocessor.prepare({"messages": messages}, images)
        prompt = prepared.prompt
        features = [image.features for image in prepared.images]
        inputs: dict[str, torch.Tensor] = {}
        prompt_inputs: dict[str, torch.Tensor] = {}
        if features:
            inputs = _to_torch(self._graphs.reference_inputs(features))
            more = self._graphs.reference_prompt_inputs(prompt.token_ids, features)
            prompt_inputs = _to_torch(more)
        input_ids = torch.from_numpy(prompt.token_ids)[None]
        is_image = torch.from_numpy(prompt.image_index >= 0)[None].int()
        # Families that tell image tokens from others call it one or the other.
        takes = inspect.signature(self._model.forward).parameters
        token_types = ("mm_token_type_ids", "token_type_ids")
        greedy: Any = GenerationConfig
        with torch.no_grad():
            output = self._model.generate(
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                **{name: is_image for name in token_types if name in takes},
                **inputs,
                **prompt_inputs,
                # Plain greedy decoding to a fixed length, whatever the checkpoint's own settings are.
                generation_config=greedy(
                    do_sample=False,
                    min_new_tokens=0,
                    max_new_tokens=_NUM_TOKENS,
                    pad_token_id=0,
                    return_dict_in_generate=True,
                    output_logits=True,
                ),
            )
            embeds = image_embeds(self._graphs, self._model, inputs) if images else None
        return ReferenceCase(
            name=name,
            messages=messages,
            images=images,
            prompt_token_ids=prompt.token_ids,
            image_embeds=embeds,
            logits=torch.cat(output.logits).numpy(),
            greedy_token_ids=output.sequences[0, input_ids.shape[1] :].tolist(),
        )


def _to_torch(arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def image_embeds(
    graphs: FamilyGraphs, model: Any, inputs: Mapping[str, torch.Tensor]
) -> np.ndarray:
    """What the Hugging Face tower makes of images, as the encoder graph gives it."""
    parts = graphs.reference_embeds(model, inputs)
    return torch.cat([torch.cat(list(part)) for part in parts], dim=1).numpy()


def _picture(width: int, height: int) -> bytes:
    """A picture with structure at every scale, the same on every machine."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    channels = [(x * x + y * 3) % 256, (x * 5 + y * y) % 256, (x * y) % 256]
    image = Image.fromarray(np.stack(channels, axis=2).astype(np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
