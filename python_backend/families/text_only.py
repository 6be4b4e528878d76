"""Models that read text only: a chat template, a tokenizer, and positions one after another."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from python_backend.errors import InvalidImageError
from python_backend.families.base import (
    Detail,
    Features,
    ModelFamily,
    PreparedImage,
    PreparedPrompt,
)
from python_backend.spec import TensorSpec

if TYPE_CHECKING:
    from python_backend.chat_template import ChatTemplate, Conversation


class TextOnly(ModelFamily):
    """Serving side of `Gemma3ForCausalLM`.

    There is no encoder stage, and preprocess refuses images: the methods about them have nothing to do.
    """

    @cached_property
    def template(self) -> ChatTemplate:
        from python_backend.chat_template import ChatTemplate

        return ChatTemplate(self.processor_dir)

    @property
    def encoder_tensors(self) -> tuple[TensorSpec, ...]:
        return ()

    def prepare_image(self, image: Image.Image, detail: Detail, num_images: int) -> PreparedImage:
        raise InvalidImageError("this model reads text only")

    def split_images(self, features: Features) -> list[Features]:
        return []

    def encoder_feeds(self, images: Sequence[Features]) -> dict[str, np.ndarray]:
        return {}

    def split_embeds(self, embeds: np.ndarray, images: Sequence[Features]) -> list[np.ndarray]:
        return []

    def prepare(
        self, conversation: Conversation, images: Sequence[PreparedImage]
    ) -> PreparedPrompt:
        token_ids = self.template.token_ids(conversation)
        return PreparedPrompt(token_ids, np.full_like(token_ids, -1), self.positions(token_ids, ()))
