"""The preprocess stage: a conversation and encoded image files to token ids, positions and pixels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

from PIL import Image

from python_backend.chat_template import TEMPLATE_VARIABLES, Conversation, TemplateOptions
from python_backend.errors import InvalidImageError, InvalidRequestError, PromptTooLongError
from python_backend.families import load_family
from python_backend.families.base import (
    Detail,
    PixelBounds,
    PreparedImage,
    PreparedPrompt,
    PromptImage,
)
from python_backend.image import ImageLimits, decode_image, image_hash, image_size
from python_backend.manifest import ModelFolder
from python_backend.video import (
    FRAMES_PER_SECOND,
    DecoderOrder,
    FrameSampling,
    Video,
    VideoLimits,
    decode_video,
)

_DETAILS: tuple[Detail, ...] = ("auto", "low", "high")
_OPTIONS = frozenset(
    (
        *("add_generation_prompt", "continue_final_message"),
        *("chat_template_kwargs", "mm_processor_kwargs", "tools"),
    )
)
_TRUNCATE = "truncate_prompt_tokens"
_ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class MediaPart:
    """An image or video part of a prompt.

    Attributes:
        path: of it in the prompt, for error messages.
        detail: of an image.
        sampling: of a video; None for an image.
        is_frames: whether the frames of a video come as `sampling.num_frames` pictures.
    """

    path: str
    detail: Detail = "auto"
    sampling: FrameSampling | None = None
    is_frames: bool = False

    @property
    def num_files(self) -> int:
        """How many of the request's files belong to it."""
        return self.sampling.num_frames if self.sampling and self.is_frames else 1


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
        num_kept = self._read_num_kept(prompt)
        conversation, parts = read_prompt(prompt)
        self._check_capabilities(conversation)
        bounds = _read_pixel_bounds(prompt.get("mm_processor_kwargs"))
        family = self.family if bounds is None else self.family.within(bounds)
        self._check_counts(parts, len(images))
        remaining = iter(images)
        files = [[next(remaining) for _ in range(part.num_files)] for part in parts]
        sizes = []
        for part, data in zip(parts, files, strict=True):
            if part.sampling is None or part.is_frames:
                with _blamed_on(part.path):
                    sizes += [image_size(file, self._limits) for file in data]
        self._limits.check_total(sizes)
        num_images = sum(part.sampling is None for part in parts)
        prepared, hashes = [], []
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
        result = self.family.prepare(conversation, prepared)
        if len(result.token_ids) > num_kept:
            if prepared:
                raise InvalidRequestError(
                    f"{_TRUNCATE} would cut a prompt of {len(result.token_ids)} tokens that has images: "
                    "allow as many, or send text only",
                    param=_TRUNCATE,
                )
            kept = result.token_ids[-num_kept:].tolist()
            result = self.family.prepare(Conversation(prompt_token_ids=kept), [])
        self._check_length(len(result.token_ids), len(prepared))
        pairs = zip(hashes, prepared, strict=True)
        named = [PromptImage(image_hash, image.num_tokens) for image_hash, image in pairs]
        return PreparedRequest(replace(result, images=named), prepared)

    def _read_num_kept(self, prompt: Mapping[str, Any]) -> float:
        """How many tokens at the end of the prompt are kept; no limit if the prompt sets none."""
        value = prompt.get(_TRUNCATE) if isinstance(prompt, Mapping) else None
        if value is None:
            return math.inf
        if type(value) is not int or (value < 1 and value != -1):
            raise InvalidRequestError(
                f"{_TRUNCATE} must be a positive integer, or -1 for what the model holds",
                param=_TRUNCATE,
            )
        return self._manifest.max_model_len - 1 if value == -1 else value

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


def read_prompt(prompt: Mapping[str, Any]) -> tuple[Conversation, list[MediaPart]]:
    """Check the prompt's JSON.

    Returns:
        The conversation, and its image and video parts in order.

    Raises:
        InvalidRequestError: it is not what `tensor_names.PROMPT` describes.
    """
    content = prompt.keys() - _OPTIONS - {_TRUNCATE} if isinstance(prompt, Mapping) else ()
    if len(content) != 1:
        raise InvalidRequestError(
            "the prompt must be a JSON object with one of messages, prompt and prompt_token_ids",
            param="prompt",
        )
    (kind,) = content
    value = prompt[kind]
    if kind != "messages" and (options_given := prompt.keys() & _OPTIONS):
        option = min(options_given)
        raise InvalidRequestError(f"{option} is for messages only", param=option)
    if kind == "prompt" and isinstance(value, str):
        return Conversation(prompt=value), []
    if (
        kind == "prompt_token_ids"
        and isinstance(value, list)
        and all(type(v) is int for v in value)
    ):
        return Conversation(prompt_token_ids=value), []
    if kind == "messages" and isinstance(value, list) and value:
        parts: list[MediaPart] = []
        for i, message in enumerate(value):
            _read_message(message, f"messages[{i}]", parts)
        tools = _read_tools(prompt["tools"]) if "tools" in prompt else ()
        options = _read_template_options(prompt)
        return Conversation(messages=value, tools=tools, options=options), parts
    raise InvalidRequestError(f"{kind} is empty or of the wrong type", param=str(kind))


def _read_template_options(prompt: Mapping[str, Any]) -> TemplateOptions:
    switches = {
        name: prompt[name]
        for name in ("add_generation_prompt", "continue_final_message")
        if name in prompt
    }
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise InvalidRequestError(f"{name} must be true or false", param=name)
    variables = prompt.get("chat_template_kwargs", {})
    if not isinstance(variables, Mapping):
        raise InvalidRequestError(
            "chat_template_kwargs must be an object", param="chat_template_kwargs"
        )
    for name, value in variables.items():
        # Nothing else may reach the template: it could replace the messages or bring functions.
        if not isinstance(value, TEMPLATE_VARIABLES.get(name, ())):
            raise InvalidRequestError(
                f"chat_template_kwargs.{name} is not among what can be set, or of the wrong type: "
                f"choose from {', '.join(TEMPLATE_VARIABLES)}",
                param=f"chat_template_kwargs.{name}",
            )
    options = TemplateOptions(**switches, variables=variables)
    if options.add_generation_prompt and options.continue_final_message:
        raise InvalidRequestError(
            "continue_final_message needs add_generation_prompt to be false",
            param="continue_final_message",
        )
    return options


def _read_pixel_bounds(values: object) -> PixelBounds | None:
    if values is None:
        return None
    names = {field.name for field in fields(PixelBounds)}
    if not isinstance(values, Mapping) or not names.issuperset(values):
        raise InvalidRequestError(
            f"mm_processor_kwargs must be an object with {' and '.join(sorted(names))}",
            param="mm_processor_kwargs",
        )
    for name, value in values.items():
        if type(value) is not int or value < 1:
            raise InvalidRequestError(
                f"{name} must be a positive integer", param=f"mm_processor_kwargs.{name}"
            )
    return PixelBounds(**values)


def _read_tools(tools: object) -> Sequence[Mapping[str, Any]]:
    if not isinstance(tools, list) or not tools or not all(isinstance(t, Mapping) for t in tools):
        raise InvalidRequestError("tools must be a list of one or more objects", param="tools")
    return tools


def _read_message(message: object, path: str, parts: list[MediaPart]) -> None:
    if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
        raise InvalidRequestError(f"{path} must have a role and content", param=path)
    if message["role"] not in _ROLES:
        raise InvalidRequestError(
            f"{path}.role must be one of {', '.join(_ROLES)}", param=f"{path}.role"
        )
    known = {"role", "content"}
    if message["role"] == "assistant":
        known |= {"tool_calls", "reasoning_content"}
        _check_assistant(message, path)
    if unknown := message.keys() - known:
        where = f"{path}.{min(unknown)}"
        raise InvalidRequestError(f"{where} does not belong to such a message", param=where)
    content = message["content"]
    if isinstance(content, str):
        return
    if not isinstance(content, list) or not content:
        raise InvalidRequestError(
            f"{path}.content must be a string or a list of parts", param=f"{path}.content"
        )
    for i, part in enumerate(content):
        where = f"{path}.content[{i}]"
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            continue
        if kind == "image" and part.get("detail", "auto") in _DETAILS:
            parts.append(MediaPart(where, part.get("detail", "auto")))
            continue
        if kind == "video":
            parts.append(_read_video(part, where))
            continue
        raise InvalidRequestError(
            f"{where} must be a text, image or video part; detail is one of {', '.join(_DETAILS)}",
            param=where,
        )


def _read_video(part: Mapping[str, Any], path: str) -> MediaPart:
    given = {name: value for name, value in part.items() if name not in ("type", "is_frames")}
    is_frames = part.get("is_frames", False)
    default = FrameSampling()
    num_frames, fps = given.pop("num_frames", default.num_frames), given.pop("fps", default.fps)
    if (
        given
        or type(is_frames) is not bool
        or type(num_frames) is not int
        or num_frames < 1
        or not (fps is None or (type(fps) in (int, float) and 0.01 <= fps <= 100))
    ):
        raise InvalidRequestError(
            f"{path} must be a video part with num_frames, an integer over 0, fps, null or from 0.01 to 100, "
            "and is_frames",
            param=path,
        )
    return MediaPart(path, sampling=FrameSampling(num_frames, fps), is_frames=is_frames)


def _check_assistant(message: Mapping[str, Any], path: str) -> None:
    if not isinstance(message.get("reasoning_content", ""), str):
        where = f"{path}.reasoning_content"
        raise InvalidRequestError(f"{where} must be a string", param=where)
    if "tool_calls" not in message:
        return
    calls = message["tool_calls"]
    if not isinstance(calls, list) or not calls:
        where = f"{path}.tool_calls"
        raise InvalidRequestError(f"{where} must be a list of one or more calls", param=where)
    for i, call in enumerate(calls):
        _check_call(call, f"{path}.tool_calls[{i}]")


def _check_call(call: object, path: str) -> None:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not (
        isinstance(function, Mapping)
        and isinstance(function.get("name"), str)
        and isinstance(function.get("arguments"), Mapping)
    ):
        raise InvalidRequestError(
            f"{path}.function must have a name and arguments, which are an object", param=path
        )
