"""Tiny checkpoints of Idefics3 and SmolVLM."""

from __future__ import annotations

from typing import Any

from tests.tiny.qwen import MAX_POSITIONS, VOCAB_SIZE
from tests.tiny.shape import Shape
from tests.tiny.tokenizer import NUM_TOKENS, TOKEN_IDS

_SPECIAL = (
    "<image>",
    "<fake_token_around_image>",
    "<end_of_utterance>",
    "<global-img>",
    *(f"<row_{row}_col_{column}>" for row in (1, 2, 3) for column in (1, 2, 3)),
)
_CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'] is string %}{{ ': ' + message['content'] }}{% else %}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}"
    "{% if line['type'] == 'text' %}{{ line['text'] }}{% else %}{{ '<image>' }}{% endif %}"
    "{% endfor %}{% endif %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def _shape(
    model_type: str,
    name: str,
    text: dict[str, Any],
    vision: dict[str, Any],
    *,
    scale: int,
    tied: bool,
    **more: Any,
) -> Shape:
    side = vision["image_size"]
    family = {"idefics3": "Idefics3", "smolvlm": "SmolVLM"}[model_type]
    config = {
        "architectures": [f"{family}ForConditionalGeneration"],
        "model_type": model_type,
        "image_token_id": NUM_TOKENS,
        "scale_factor": scale,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "text_config": {
            "model_type": "llama",
            "bos_token_id": TOKEN_IDS["<|endoftext|>"],
            "eos_token_id": TOKEN_IDS["<|im_end|>"],
            "pad_token_id": TOKEN_IDS["<|endoftext|>"],
            "max_position_embeddings": MAX_POSITIONS,
            "vocab_size": VOCAB_SIZE,
            "rms_norm_eps": 1e-05,
            "hidden_act": "silu",
            "tie_word_embeddings": tied,
            **text,
        },
        "vision_config": {
            "model_type": f"{model_type}_vision",
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-06,
            "num_channels": 3,
            **vision,
        },
    }
    preprocessor = {
        "image_processor_type": f"{family}ImageProcessor",
        "processor_class": f"{family}Processor",
        "size": {"longest_edge": 3 * side},
        "max_image_size": {"longest_edge": side},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "resample": 1,
        "do_convert_rgb": True,
        "do_image_splitting": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_pad": True,
    }
    if model_type == "smolvlm":  # as on the hub; `video_size` gives way to the size above
        size = {"longest_edge": side}
        preprocessor["video_sampling"] = {"fps": 1, "max_frames": 64, "video_size": size}
    return Shape(
        name=name,
        config=config,
        preprocessor=preprocessor,
        more_special=_SPECIAL,
        chat_template=_CHAT_TEMPLATE,
        **more,
    )


IDEFICS3 = (
    _shape(
        "smolvlm",
        "tiny-smolvlm",
        {
            "hidden_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 96,
            "rope_theta": 100000.0,
        },
        {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 96,
            "image_size": 32,
            "patch_size": 4,
        },
        scale=4,
        tied=True,
    ),
    # Llama 3's stretched rope, which Idefics3-8B has.
    _shape(
        "idefics3",
        "tiny-idefics3",
        {
            "hidden_size": 96,
            "num_hidden_layers": 3,
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
        },
        {
            "hidden_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "intermediate_size": 72,
            "image_size": 48,
            "patch_size": 8,
        },
        scale=2,
        tied=False,
        layout="transformers",
    ),
)
