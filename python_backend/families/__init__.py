"""Model families, the serving side: `model_type` to the class that prepares its requests."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from python_backend.errors import BundleError
from python_backend.families.base import ModelFamily

_FAMILIES = {
    "gemma3": ("python_backend.families.gemma3", "Gemma3"),
    "gemma3_text": ("python_backend.families.text_only", "TextOnly"),
    "idefics3": ("python_backend.families.idefics3", "Idefics3"),
    "smolvlm": ("python_backend.families.idefics3", "SmolVLM"),
    "llava_onevision": ("python_backend.families.llava_onevision", "LlavaOnevision"),
    "mllama": ("python_backend.families.mllama", "Mllama"),
    "qwen2_vl": ("python_backend.families.qwen2_vl", "Qwen2VL"),
    "qwen3_vl": ("python_backend.families.qwen3_vl", "Qwen3VL"),
    "qwen2_5_vl": ("python_backend.families.qwen2_5_vl", "Qwen2_5VL"),
}


def load_family(config: Mapping[str, Any], processor_dir: Path) -> ModelFamily:
    """The family of `config["model_type"]`, with its tokenizer and image processor loaded.

    Raises:
        BundleError: nobody has written that family.
    """
    model_type = config["model_type"]
    if model_type not in _FAMILIES:
        raise BundleError(
            f"model_type {model_type!r} is not supported; supported are {', '.join(sorted(_FAMILIES))}"
        )
    module, name = _FAMILIES[model_type]
    family: ModelFamily = getattr(import_module(module), name)(config, processor_dir)
    return family
