"""Requests as the preprocess and encoder stages make them, for an engine that is driven step by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from python_backend.config import EngineConfig
from python_backend.loading import load_vision_encoder
from python_backend.manifest import ModelFolder
from python_backend.preprocess import Preprocessor
from python_backend.request import GenerationRequest
from python_backend.sampling_params import SamplingParams
from python_backend.vision_encoder import EncoderImage, no_image_embeds
from python_backend.vlm import split_images

Conversation = Sequence[dict[str, Any]]


class Requests:
    """Makes requests of conversations with one model."""

    def __init__(self, model: ModelFolder) -> None:
        self._model, self._preprocessor = model, Preprocessor(model)
        self._encoder = None
        if model.manifest.sees_images:
            self._encoder = load_vision_encoder(model, self._preprocessor.family, EngineConfig())

    def of(
        self, conversation: Conversation, params: SamplingParams, request_id: str = "a"
    ) -> GenerationRequest:
        """A request with its pictures encoded."""
        messages, images = split_images(conversation)
        prepared = self._preprocessor.prepare({"messages": messages}, images)
        if self._encoder is None:
            embeds = no_image_embeds(self._model.manifest.decoder.spec)
        else:
            pairs = zip(prepared.images, prepared.image_hashes, strict=True)
            pictures = [EncoderImage(image.features, name) for image, name in pairs]
            embeds = self._encoder.join(pictures, self._encoder.encode(pictures))
        return GenerationRequest(request_id, prepared.prompt, embeds, params)

    def close(self) -> None:
        """Free the encoder."""
        if self._encoder is not None:
            self._encoder.close()
