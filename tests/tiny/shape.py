"""What a tiny checkpoint is made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.tiny.tokenizer import CHAT_TEMPLATE


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One tiny checkpoint.

    Attributes:
        name: of the folder.
        config: config.json.
        preprocessor: preprocessor_config.json; None for a model that reads text only.
        video_preprocessor: video_preprocessor_config.json, if there is one.
        layout: `hub` (config and tensor names as on the hub) or `transformers` (what
            `save_pretrained` of transformers 5 writes).
        hub_names: beginnings of the names of transformers 5, and what the hub has instead.
        more_special: control tokens besides Qwen's.
        chat_template: the family's.
        more_visible: tokens besides Qwen's that show in a text.
        num_cross_layers: decoder layers that attend to images.
        num_files: safetensors files; more than one come with an index.
        seed: of the weights.
    """

    name: str
    config: Mapping[str, Any]
    preprocessor: Mapping[str, Any] | None
    video_preprocessor: Mapping[str, Any] | None = None
    layout: Literal["hub", "transformers"] = "hub"
    hub_names: Mapping[str, str] = field(default_factory=dict)
    more_special: tuple[str, ...] = ()
    chat_template: str = CHAT_TEMPLATE
    more_visible: tuple[str, ...] = ()
    num_cross_layers: int = 0
    num_files: int = 1
    seed: int = 0

    @property
    def model_type(self) -> str:
        """The family."""
        return str(self.config["model_type"])

    @property
    def sees_images(self) -> bool:
        """Whether it reads more than text."""
        return self.preprocessor is not None

    @property
    def auto_class(self) -> Any:
        """What opens it in Hugging Face."""
        from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

        return AutoModelForImageTextToText if self.sees_images else AutoModelForCausalLM

    @property
    def num_layers(self) -> int:
        """Of the decoder."""
        return int((self.config.get("text_config") or self.config)["num_hidden_layers"])
