"""Model families, the builder's side: `model_type` of config.json to the class that builds its graphs."""

from __future__ import annotations

from importlib import import_module

from builders.families.base import FamilyGraphs
from python_backend.errors import BundleError

_FAMILIES = {
    "gemma3": ("builders.families.gemma3", "Gemma3Graphs"),
    "gemma3_text": ("builders.families.gemma3", "Gemma3TextGraphs"),
    "idefics3": ("builders.families.idefics3", "Idefics3Graphs"),
    "smolvlm": ("builders.families.idefics3", "Idefics3Graphs"),
    "llava_onevision": ("builders.families.llava_onevision", "LlavaOnevisionGraphs"),
    "mllama": ("builders.families.mllama", "MllamaGraphs"),
    "qwen2_vl": ("builders.families.qwen2_vl", "Qwen2VLGraphs"),
    "qwen3_vl": ("builders.families.qwen3_vl", "Qwen3VLGraphs"),
    "qwen2_5_vl": ("builders.families.qwen2_5_vl", "Qwen2_5VLGraphs"),
}


def served_types() -> tuple[str, ...]:
    """Every model_type that has a graph builder."""
    return tuple(sorted(_FAMILIES))


def family_graphs(model_type: str) -> type[FamilyGraphs]:
    """The graph builder of `model_type`.

    Raises:
        BundleError: nobody has written it.
    """
    if model_type not in _FAMILIES:
        raise BundleError(
            f"model_type {model_type!r} is not supported; supported are {', '.join(served_types())}"
        )
    module, name = _FAMILIES[model_type]
    family: type[FamilyGraphs] = getattr(import_module(module), name)
    return family
