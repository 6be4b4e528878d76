"""Tiny checkpoints of LLaVA-OneVision."""

from __future__ import annotations

from typing import Any

from tests.tiny.qwen import MAX_POSITIONS, VOCAB_SIZE
from tests.tiny.shape import Shape
from tests.tiny.tokenizer import NUM_TOKENS, TOKEN_IDS

_SPECIAL = ("<image>", "<video>")
_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    "{% if message['content'] is string %}{{ '\n' + message['content'] }}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'video') %}"
    "{{ '<video>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ '\n' + content['text'] }}{% endfor %}{% endif %}"
    "{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_HUB_NAMES = {
    "lm_head.": "language_model.lm_head.",
    "model.language_model.": "language_model.model.",
    "model.vision_tower.": "vision_tower.vision_model.",
    "model.": "",
}


def _shape(
    name: str, text: dict[str, Any], vision: dict[str, Any], *, max_tiles: int, **more: Any
) -> Shape:
    side = vision["image_size"]
    pinpoints = [[side * rows, side * columns] for rows in (1, 2, 3) for columns in (1, 2, 3)]
    aspect_ratio = f"anyres_max_{max_tiles}"
    config = {
        "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "model_type": "llava_onevision",
        "image_token_index": NUM_TOKENS,
        "video_token_index": NUM_TOKENS + 1,
        "image_grid_pinpoints": pinpoints,
        "vision_aspect_ratio": aspect_ratio,
        "vision_feature_select_strategy": "full",
        "vision_feature_layer": -1,
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": text["tie_word_embeddings"],
        "torch_dtype": "bfloat16",
        "text_config": {
            "model_type": "qwen2",
            "bos_token_id": TOKEN_IDS["<|endoftext|>"],
            "eos_token_id": TOKEN_IDS["<|im_end|>"],
            "max_position_embeddings": MAX_POSITIONS,
            "vocab_size": VOCAB_SIZE,
            "rms_norm_eps": 1e-06,
            "rope_theta": 1000000.0,
            "hidden_act": "silu",
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
        "image_processor_type": "LlavaOnevisionImageProcessor",
        "processor_class": "LlavaOnevisionProcessor",
        "image_grid_pinpoints": pinpoints,
        "size": {"height": side, "width": side},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "resample": 3,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_pad": True,
    }
    return Shape(
        name=name,
        config=config,
        preprocessor=preprocessor,
        more_special=_SPECIAL,
        chat_template=_CHAT_TEMPLATE,
        **more,
    )


LLAVA_ONEVISION = (
    _shape(
        "tiny-llava",
        {
            "hidden_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 96,
            "tie_word_embeddings": False,
        },
        {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 96,
            "image_size": 28,
            "patch_size": 7,
        },
        max_tiles=9,
        hub_names=_HUB_NAMES,
    ),
    # Features of a large picture are resampled: three tiles' worth is the most.
    _shape(
        "tiny-llava-tied",
        {
            "hidden_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "intermediate_size": 100,
            "tie_word_embeddings": True,
        },
        {
            "hidden_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "intermediate_size": 72,
            "image_size": 24,
            "patch_size": 8,
        },
        max_tiles=3,
        layout="transformers",
    ),
)
