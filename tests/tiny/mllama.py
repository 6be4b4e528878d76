"""Tiny checkpoints of Llama 3.2 Vision."""

from __future__ import annotations

from typing import Any

from tests.tiny.qwen import MAX_POSITIONS
from tests.tiny.shape import Shape
from tests.tiny.tokenizer import NUM_TOKENS, TOKEN_IDS

_CHAT_TEMPLATE = (
    "{{ '<|endoftext|>' }}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ '<|image|>' }}{% else %}{{ content['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}"
)
_HUB_NAMES = {
    "lm_head.": "language_model.lm_head.",
    "model.language_model.": "language_model.model.",
    "model.": "",
}


def _shape(name: str, text: dict[str, Any], vision: dict[str, Any], **more: Any) -> Shape:
    max_tiles, num_between = vision["max_num_tiles"], len(vision["intermediate_layers_indices"])
    ratios = [
        [rows, columns]
        for rows in range(1, max_tiles + 1)
        for columns in range(1, max_tiles + 1)
        if rows * columns <= max_tiles
    ]
    config = {
        "architectures": ["MllamaForConditionalGeneration"],
        "model_type": "mllama",
        # The first of the tokens that the embedding table has and the head has not.
        "image_token_index": NUM_TOKENS,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "text_config": {
            "model_type": "mllama_text_model",
            "bos_token_id": TOKEN_IDS["<|endoftext|>"],
            "eos_token_id": TOKEN_IDS["<|im_end|>"],
            "pad_token_id": TOKEN_IDS["<|endoftext|>"],
            "max_position_embeddings": MAX_POSITIONS,
            "vocab_size": NUM_TOKENS,
            "rms_norm_eps": 1e-05,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            **text,
        },
        "vision_config": {
            "model_type": "mllama_vision_model",
            "hidden_act": "gelu",
            "norm_eps": 1e-05,
            "num_channels": 3,
            "supported_aspect_ratios": ratios,
            "vision_output_dim": vision["hidden_size"] * (1 + num_between),
            **vision,
        },
    }
    preprocessor = {
        "image_processor_type": "MllamaImageProcessor",
        "processor_class": "MllamaProcessor",
        "size": {"height": vision["image_size"], "width": vision["image_size"]},
        "max_image_tiles": max_tiles,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 2,
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_pad": True,
    }
    return Shape(
        name=name,
        config=config,
        preprocessor=preprocessor,
        more_special=("<|image|>",),
        chat_template=_CHAT_TEMPLATE,
        num_cross_layers=len(text["cross_attention_layers"]),
        **more,
    )


MLLAMA = (
    _shape(
        "tiny-mllama",
        {
            "hidden_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 96,
            "rope_theta": 500000.0,
            "cross_attention_layers": [1, 3],
        },
        {
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "num_global_layers": 2,
            "attention_heads": 2,
            "intermediate_size": 96,
            "intermediate_layers_indices": [0, 1],
            "image_size": 32,
            "patch_size": 8,
            "max_num_tiles": 4,
        },
        hub_names=_HUB_NAMES,
    ),
    # Two layers of cross-attention in a row, pictures of two tiles, a rope stretched as in the 11B.
    _shape(
        "tiny-mllama-two-tiles",
        {
            "hidden_size": 96,
            "num_hidden_layers": 5,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "intermediate_size": 100,
            "rope_theta": 500000.0,
            "rope_scaling": {
                "factor": 8.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 64,
                "rope_type": "llama3",
            },
            "cross_attention_layers": [2, 3],
        },
        {
            "hidden_size": 48,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 3,
            "intermediate_size": 72,
            "intermediate_layers_indices": [1, 0],
            "image_size": 24,
            "patch_size": 8,
            "max_num_tiles": 2,
        },
        layout="transformers",
    ),
)
