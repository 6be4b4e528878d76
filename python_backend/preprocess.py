"""The preprocess stage: a conversation and encoded image files to token ids, positions and pixels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from python_backend.chat_template import Conversation
from python_backend.errors import InvalidImageError, InvalidRequestError, PromptTooLongError
from python_backend.families import load_family
from python_backend.families.base import (
    PixelBounds,
    PreparedImage,
    PreparedPrompt,
    PromptImage,
)
from python_backend.image import ImageLimits, decode_image, image_hash, image_size
from python_backend.manifest import ModelFolder
from python_backend.prompt_reader import (
    TRUNCATE,
    MediaPart,
    read_num_kept,
    read_pixel_bounds,
    read_prompt,
)
from python_backend.video import (
    FRAMES_PER_SECOND,
    DecoderOrder,
    FrameSampling,
    Video,
    VideoLimits,
    decode_video,
)


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """What preprocess hands to the encoder and the decoder.

    Attributes:
        prompt: for the decoder.
        images: for the encoder, videos among them.
    """

    prompt: PreparedPrompt
    images: Sequence[PreparedImage]

    @property
    def image_hashes(self) -> list[str]:
        """One per image."""
        return [image.image_hash for image in self.prompt.images]


class Preprocessor:
    """Prepares requests for one model.

    Args:
        model: the built model.
        limits: what an image may cost.
        video_limits: what a video may cost beside that.
    """

    def __init__(
        self,
        model: ModelFolder,
        limits: ImageLimits | None = None,
        video_limits: VideoLimits | None = None,
    ) -> None:
        self._manifest = model.manifest
        self._limits = limits or ImageLimits()
        self._video_limits = video_limits or VideoLimits()
        self.family = load_family(model.manifest.config, model.processor_dir)
        self.family.load_processors()

    def prepare(self, prompt: Mapping[str, Any], images: Sequence[bytes]) -> PreparedRequest:
        """Decode images and videos, render and tokenize the conversation.

        Args:
            prompt: as `tensor_names.PROMPT` describes it.
            images: encoded files, in the order of the conversation's image and video parts.

        Raises:
            InvalidRequestError: the prompt is malformed, too long, or does not match the images.
            InvalidImageError: an image or video is not readable or outside the limits.
        """
        num_kept = read_num_kept(prompt, self._manifest.max_model_len)
        conversation, parts = read_prompt(prompt)
        self._check_capabilities(conversation)
        bounds = read_pixel_bounds(prompt)
        self._check_counts(parts, len(images))
        remaining = iter(images)
        files = [[next(remaining) for _ in range(part.num_files)] for part in parts]
        prepared, hashes = self._prepare_media(parts, files, bounds)
        result = self.family.prepare(conversation, prepared)
        if len(result.token_ids) > num_kept:
            if prepared:
                raise InvalidRequestError(
                    f"{TRUNCATE} would cut a prompt of {len(result.token_ids)} tokens that has images: "
                    "allow as many, or send text only",
                    param=TRUNCATE,
                )
            kept = result.token_ids[-num_kept:].tolist()
            result = self.family.prepare(Conversation(prompt_token_ids=kept), [])
        self._check_length(len(result.token_ids), len(prepared))
        pairs = zip(hashes, prepared, strict=True)
        named = [PromptImage(image_hash, image.num_tokens) for image_hash, image in pairs]
        return PreparedRequest(replace(result, images=named), prepared)

    def _prepare_media(
        self,
        parts: Sequence[MediaPart],
        files: Sequence[Sequence[bytes]],
        bounds: PixelBounds | None,
    ) -> tuple[list[PreparedImage], list[str]]:
        """Each image or video as the encoder takes it, and its hash."""
        sizes = []
        for part, data in zip(parts, files, strict=True):
            if part.sampling is None or part.is_frames:
                with _blamed_on(part.path):
                    sizes += [image_size(file, self._limits) for file in data]
        self._limits.check_total(sizes)
        family = self.family if bounds is None else self.family.within(bounds)
        num_images = sum(part.sampling is None for part in parts)
        prepared: list[PreparedImage] = []
        hashes = []
        for part, data in zip(parts, files, strict=True):
            with _blamed_on(part.path):
                if part.sampling is None:
                    frames: Sequence[Image.Image] = [decode_image(data[0], self._limits)]
                    image = family.prepare_image(frames[0], part.detail, num_images)
                else:
                    video = self._decode_video(part.sampling, part.is_frames, data)
                    frames = video.frames
                    if not part.is_frames:
                        sizes += [frame.size for frame in frames]
                        self._limits.check_total(sizes)
                    image = family.prepare_video(video)
            prepared.append(image)
            fingerprint = self._manifest.processor_fingerprint
            # The same picture is another one when it is cut otherwise.
            shapes = {name: array.shape for name, array in image.features.items()}
            hashes.append(image_hash(frames, fingerprint, part.detail, repr(bounds), repr(shapes)))
            self._check_length(sum(image.num_tokens for image in prepared), len(prepared))
        return prepared, hashes

    def _decode_video(
        self, sampling: FrameSampling, is_frames: bool, data: Sequence[bytes]
    ) -> Video:
        if is_frames:
            frames = [decode_image(file, self._limits) for file in data]
            return Video.of_frames(frames, sampling.fps or FRAMES_PER_SECOND)
        return decode_video(data[0], DecoderOrder(sampling, self._video_limits, self._limits))

    def _check_counts(self, parts: Sequence[MediaPart], num_files: int) -> None:
        """Refuse more or other media than the parts say or the model takes."""
        manifest = self._manifest
        if sum(part.num_files for part in parts) != num_files:
            raise InvalidRequestError(
                f"the prompt has {len(parts)} image and video parts for {num_files} files",
                param="messages",
            )
        if parts and not manifest.sees_images:
            raise InvalidRequestError(
                f"{manifest.served_model_name} is a text-only model: send the request without "
                "images, or ask a model that sees them.",
                param="messages",
            )
        if len(parts) > manifest.max_images:
            raise InvalidRequestError(
                f"At most {manifest.max_images} images may be provided in one prompt; this one "
                f"has {len(parts)}.",
                param="messages",
            )
        for part in parts:
            if part.sampling is None:
                continue
            if not manifest.takes_videos:
                raise InvalidRequestError(
                    f"{manifest.served_model_name} takes no videos: send pictures, or ask a model that takes "
                    "videos.",
                    code="unsupported_value",
                    param=part.path,
                )
            if part.sampling.num_frames > self._video_limits.max_frames:
                raise InvalidRequestError(
                    f"At most {self._video_limits.max_frames} frames of a video are looked at; this one asks "
                    f"for {part.sampling.num_frames}.",
                    param=part.path,
                )

    def _check_capabilities(self, conversation: Conversation) -> None:
        """Refuse what the chat template would leave out."""
        manifest, messages = self._manifest, conversation.messages or ()
        uses_tools = conversation.tools or any(
            message["role"] == "tool" or "tool_calls" in message for message in messages
        )
        if uses_tools and manifest.tool_format is None:
            raise InvalidRequestError(
                f"the chat template of {manifest.served_model_name} takes no tools: send the request "
                "without them, or ask a model that calls tools",
                param="tools",
            )
        if manifest.reasoning_marks is None and any("reasoning_content" in m for m in messages):
            raise InvalidRequestError(
                f"{manifest.served_model_name} does not reason: send its messages without "
                "reasoning_content",
                param="messages",
            )

    def _check_length(self, num_tokens: int, num_images: int) -> None:
        """Refuse a prompt before the encoder works for it."""
        if num_tokens >= self._manifest.max_model_len:
            images = f" (with {num_images} images)" if num_images else ""
            raise PromptTooLongError(
                f"This model's maximum context length is {self._manifest.max_model_len} tokens. However, "
                f"your messages resulted in at least {num_tokens} tokens{images}. Please reduce the "
                "length of the messages or send fewer or smaller images.",
                param="messages",
            )


@contextmanager
def _blamed_on(part: str) -> Iterator[None]:
    """Errors from inside name the image part."""
    try:
        yield
    except InvalidImageError as error:
        error.param = part
        raise
