"""What a family tells the serving stages: how a conversation becomes token ids, positions and pixels.

Everything here is numpy; the graphs of a family are built in `builders.families`.
Dimension letters: S prompt tokens, N patches or pixels rows of one image (the family's word).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from PIL import Image

from python_backend.errors import InvalidRequestError
from python_backend.spec import TensorSpec
from python_backend.video import Video

if TYPE_CHECKING:
    from python_backend.chat_template import ChatTemplate, Conversation, VideoTemplate

Features = Mapping[str, np.ndarray]
"""Tensors of one or several images, as they cross from preprocess to encoder."""

Detail = Literal["auto", "low", "high"]
"""OpenAI's `image_url.detail`: `low` caps the pixels, `high` and `auto` leave the processor's limit."""

LOW_DETAIL_PIXELS = 512 * 512


@dataclass(frozen=True, slots=True)
class PixelBounds:
    """How many pixels a request wants its pictures resized to; None: as many as the checkpoint says."""

    min_pixels: int | None = None
    max_pixels: int | None = None


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """One image or video, ready for the encoder. A video is an image of several frames from here on.

    Attributes:
        features: the family's tensors, first axis is the image's own; there may be others, for `positions`.
        num_tokens: how many tokens of the prompt the image takes.
        is_video: whether it stands where the conversation has a video.
    """

    features: Features
    num_tokens: int
    is_video: bool = False


@dataclass(frozen=True, slots=True)
class PromptImage:
    """One image of a prompt, to tell whether another prompt has the same one.

    Attributes:
        image_hash: of its content and of everything else that decides its embeddings.
        num_tokens: how many tokens of the prompt stand for it.
    """

    image_hash: str
    num_tokens: int


@dataclass(frozen=True, slots=True)
class PreparedPrompt:
    """A conversation as the decoder takes it.

    Attributes:
        token_ids: int64 [S], placeholders expanded.
        image_index: int64 [S], which of the prompt's image tokens a token is, -1 for text. Without
            cross-attention that is the row of `image_embeds` that takes its place.
        position_ids: int64 [axes, S].
        cross_range: int64 [S, 2], first and one after the last row of `image_embeds` that each token sees by
            cross-attention, equal where it sees none; None in families without.
        images: one for each image, in order.
    """

    token_ids: np.ndarray
    image_index: np.ndarray
    position_ids: np.ndarray
    cross_range: np.ndarray | None = None
    images: Sequence[PromptImage] = ()

    @property
    def num_image_tokens(self) -> int:
        """Tokens that stand for images."""
        return int((self.image_index >= 0).sum())


class ModelFamily(ABC):
    """Everything the serving stages may not know about a model.

    Args:
        config: the checkpoint's normalized config.json, from the manifest.
        processor_dir: tokenizer and processor files.
    """

    def __init__(self, config: Mapping[str, Any], processor_dir: Path) -> None:
        self.config = config
        self.processor_dir = processor_dir

    def load_processors(self) -> None:
        """Load tokenizer and image processor now rather than with the first request.

        The encoder stage does without them, and without the second that transformers takes to import.

        Raises:
            BundleError: they do not belong to the model.
        """
        _ = self.template

    @cached_property
    def template(self) -> ChatTemplate:
        """The checkpoint's chat template and tokenizer."""
        from python_backend.chat_template import ChatTemplate

        return ChatTemplate(
            self.processor_dir,
            self.placeholder_id,
            self.image_token_id,
            self.video_token_id,
            self.video_template,
        )

    @property
    def image_token_id(self) -> int:
        """The token that stands for one image embedding."""
        return int(self.config["image_token_id"])

    @property
    def placeholder_id(self) -> int:
        """The token that the chat template writes where an image is."""
        return self.image_token_id

    @property
    def video_token_id(self) -> int | None:
        """The token that stands for one embedding of a video; None if there is no such token."""
        return None

    @property
    def video_template(self) -> VideoTemplate | None:
        """The family's own chat template for conversations with videos; None: the checkpoint's does."""
        return None

    @property
    def takes_videos(self) -> bool:
        """Whether a conversation may have videos."""
        return self.video_token_id is not None or self.video_template is not None

    def within(self, bounds: PixelBounds) -> Self:
        """This family with pictures of so many pixels, as far as the checkpoint allows them.

        Raises:
            InvalidRequestError: its pictures have sizes of their own.
        """
        raise InvalidRequestError(
            "this model resizes images to sizes of its own: leave mm_processor_kwargs out",
            param="mm_processor_kwargs",
        )

    @property
    @abstractmethod
    def encoder_tensors(self) -> tuple[TensorSpec, ...]:
        """The tensors of `Features`, with a dynamic first axis."""

    @abstractmethod
    def prepare_image(self, image: Image.Image, detail: Detail, num_images: int) -> PreparedImage:
        """Resize, normalize and cut one of a prompt's images exactly as the Hugging Face processor does.

        Args:
            image: RGB.
            detail: how closely to look.
            num_images: in the prompt; some families look less closely at several.

        Raises:
            InvalidImageError: the image's shape is outside what the model takes.
        """

    def prepare_video(self, video: Video) -> PreparedImage:
        """The same for a video; only families that `takes_videos` have it."""
        raise NotImplementedError

    def image_text(self, image: PreparedImage) -> str:
        """What takes the place of the image's placeholder in the rendered conversation."""
        template = self.template
        token = template.video_token if image.is_video else template.image_token
        return token * image.num_tokens

    def num_patches(self, features: Features) -> int:
        """Vision patches of an image: what its encoding costs."""
        pixels = features["pixel_values"]
        if pixels.ndim == 2:  # a row each
            return len(pixels)
        side = pixels.shape[-1] // self.config["vision_config"]["patch_size"]
        return int(len(pixels) * side**2)

    @abstractmethod
    def split_images(self, features: Features) -> list[Features]:
        """The images of `join_images`, one by one."""

    def split_frames(self, features: Features) -> Sequence[Features]:
        """Parts of an image that are encoded each by itself, their embeddings one after another."""
        return [features]

    @abstractmethod
    def encoder_feeds(self, images: Sequence[Features]) -> dict[str, np.ndarray]:
        """Inputs of the vision-encoder graph for several images at once; at least one."""

    @abstractmethod
    def split_embeds(self, embeds: np.ndarray, images: Sequence[Features]) -> list[np.ndarray]:
        """Rows of the graph's output [M, hidden] that belong to each image."""

    def join_embeds(self, embeds: Sequence[np.ndarray], images: Sequence[Features]) -> np.ndarray:
        """The embeddings of a request's images, at least one, in the order that the decoder takes them."""
        return np.concatenate(embeds)

    def is_image_token(self, token_ids: np.ndarray) -> np.ndarray:
        """Which tokens stand for images and videos, bool [S]."""
        return np.isin(token_ids, [self.image_token_id, self.video_token_id or -1])

    def positions(self, token_ids: np.ndarray, images: Sequence[Features]) -> np.ndarray:
        """Position ids int64 [axes, S] of an expanded prompt: one after another, on one axis."""
        return np.arange(len(token_ids))[None]

    def cross_range(self, token_ids: np.ndarray, images: Sequence[Features]) -> np.ndarray | None:
        """`PreparedPrompt.cross_range` of an expanded prompt."""
        return None

    def join_images(self, images: Sequence[PreparedImage]) -> dict[str, np.ndarray]:
        """The features of all images of a request, one after another; empty axes when there are none."""
        if images:
            names = [spec.name for spec in self.encoder_tensors]
            return {name: np.concatenate([i.features[name] for i in images]) for name in names}
        return {
            spec.name: np.empty(
                (0, *(dim for dim in spec.shape[1:] if isinstance(dim, int))), spec.dtype
            )
            for spec in self.encoder_tensors
        }

    def prepare(
        self, conversation: Conversation, images: Sequence[PreparedImage]
    ) -> PreparedPrompt:
        """Token ids and positions of a conversation whose images are already prepared.

        Who has their hashes adds `PreparedPrompt.images`.

        Raises:
            InvalidRequestError: placeholders and images do not match, or a text is not acceptable.
        """
        token_ids = self.template.token_ids(conversation, [self.image_text(i) for i in images])
        is_image = self.is_image_token(token_ids)
        image_index = np.where(is_image, np.cumsum(is_image) - 1, -1)
        features = [image.features for image in images]
        positions = self.positions(token_ids, features)
        return PreparedPrompt(
            token_ids, image_index, positions, self.cross_range(token_ids, features)
        )
