"""Tiny checkpoints of Gemma 3, with and without a vision tower."""

from __future__ import annotations

from typing import Any

from tests.tiny.qwen import MAX_POSITIONS, VOCAB_SIZE
from tests.tiny.shape import Shape
from tests.tiny.tokenizer import NUM_TOKENS, TOKEN_IDS

_SPECIAL = ("<start_of_image>", "<end_of_image>", "<image_soft_token>")
# Of Gemma's template: a system prompt is the beginning of the first turn, texts are trimmed.
_CHAT_TEMPLATE = (
    "{%- if messages[0]['role'] == 'system' -%}"
    "{%- set prefix = messages[0]['content'] + '\n\n' -%}{%- set turns = messages[1:] -%}"
    "{%- else -%}{%- set prefix = '' -%}{%- set turns = messages -%}{%- endif -%}"
    "{{ '<|endoftext|>' }}"
    "{%- for message in turns -%}"
    "{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}"
    "{{ '<|im_start|>' + role + '\n' + (prefix if loop.first else '') }}"
    "{%- if message['content'] is string -%}{{ message['content'] | trim }}{%- else -%}"
    "{%- for item in message['content'] -%}"
    "{%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}"
    "{%- else -%}{{ item['text'] | trim }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{{ '<|im_end|>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>model\n' }}{%- endif -%}"
)
_TEXT = {
    "model_type": "gemma3_text",
    "max_position_embeddings": MAX_POSITIONS,
    "vocab_size": VOCAB_SIZE,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "hidden_activation": "gelu_pytorch_tanh",
}
_HUB_NAMES = {
    "lm_head.": "language_model.lm_head.",
    "model.language_model.": "language_model.model.",
    "model.vision_tower.": "vision_tower.vision_model.",
    "model.": "",
}


def _shape(
    name: str, text: dict[str, Any], vision: dict[str, Any], *, num_tokens: int, **more: Any
) -> Shape:
    crops = more.pop("crops", {})
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "boi_token_index": NUM_TOKENS,
        "eoi_token_index": NUM_TOKENS + 1,
        "image_token_index": NUM_TOKENS + 2,
        "eos_token_id": [TOKEN_IDS["<|im_end|>"]],
        "mm_tokens_per_image": num_tokens,
        "torch_dtype": "bfloat16",
        "text_config": {
            **_TEXT,
            **text,
        },
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-06,
            "num_channels": 3,
            "vision_use_head": False,
            **vision,
        },
    }
    preprocessor = {
        "image_processor_type": "Gemma3ImageProcessor",
        "processor_class": "Gemma3Processor",
        "size": {"height": vision["image_size"], "width": vision["image_size"]},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "resample": 2,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_pan_and_scan": None,
        "pan_and_scan_min_crop_size": None,
        "pan_and_scan_max_num_crops": None,
        "pan_and_scan_min_ratio_to_activate": None,
        **crops,
    }
    return Shape(
        name=name,
        config=config,
        preprocessor=preprocessor,
        more_special=_SPECIAL,
        chat_template=_CHAT_TEMPLATE,
        **more,
    )


GEMMA3 = (
    _shape(
        "tiny-gemma3",
        {
            "hidden_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 96,
            "head_dim": 32,
            "query_pre_attn_scalar": 24,
            "sliding_window": 12,
            "sliding_window_pattern": 3,
        },
        {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 96,
            "image_size": 56,
            "patch_size": 7,
        },
        num_tokens=16,
        hub_names=_HUB_NAMES,
    ),
    # An image of more tokens than the window, and pictures that are cut into crops.
    _shape(
        "tiny-gemma3-crops",
        {
            "hidden_size": 96,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "intermediate_size": 100,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 5,
            "sliding_window_pattern": 2,
        },
        {
            "hidden_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "intermediate_size": 72,
            "image_size": 24,
            "patch_size": 8,
        },
        num_tokens=9,
        layout="transformers",
        crops={
            "pan_and_scan_min_crop_size": 20,
            "pan_and_scan_max_num_crops": 3,
            "pan_and_scan_min_ratio_to_activate": 1.5,
        },
    ),
)


def _text_shape(name: str, text: dict[str, Any], **more: Any) -> Shape:
    config = {
        "architectures": ["Gemma3ForCausalLM"],
        "eos_token_id": [TOKEN_IDS["<|im_end|>"]],
        "torch_dtype": "bfloat16",
        **_TEXT,
        **text,
    }
    return Shape(name=name, config=config, preprocessor=None, chat_template=_CHAT_TEMPLATE, **more)


GEMMA3_TEXT = (
    # A vocabulary without room for images, and the rope of the 1B model, which is not stretched.
    _text_shape(
        "tiny-gemma3-text",
        {
            "hidden_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "intermediate_size": 96,
            "head_dim": 48,
            "query_pre_attn_scalar": 48,
            "rope_scaling": None,
            "sliding_window": 7,
            "sliding_window_pattern": 3,
            "vocab_size": NUM_TOKENS,
        },
    ),
    _text_shape(
        "tiny-gemma3-text-untied",
        {
            "hidden_size": 96,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "intermediate_size": 100,
            "head_dim": 16,
            "query_pre_attn_scalar": 20,
            "attention_bias": True,
            "sliding_window": 40,
            "sliding_window_pattern": 2,
            "tie_word_embeddings": False,
        },
        layout="transformers",
    ),
)
