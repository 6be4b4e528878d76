"""From chat messages to the PROMPT JSON and the images it refers to, in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pydantic_core

from openai_frontend.protocol.messages import (
    ContentPart,
    ImageUrl,
    Message,
    TextPart,
    ToolCall,
    VideoPart,
)
from openai_frontend.protocol.tools import Tool
from openai_frontend.validation import is_finite
from python_backend.errors import InvalidRequestError

# Beside role and content; any of them that is null or empty is taken for absent.
_FIELDS_OF_ROLES = {
    "name": "tool",
    "reasoning_content": "assistant",
    "tool_calls": "assistant",
    "tool_call_id": "tool",
}
_ROLES_WITH_IMAGES = ("user", "tool")
_FRAMES = "data:video/jpeg;base64,"
"""vLLM's form of a video that needs no decoder: its frames, with commas between them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSource:
    """Where one image or video of the prompt comes from.

    Attributes:
        url: `http:`, `https:`, `data:` or `file:` URL as the client wrote it; None: what `uuid` stands for.
        uuid: the client's own name for the image, if it gave one.
        path: of the part in the request, for error messages.
        kind: a picture by itself, a video file, or a picture that is a frame of a video.
    """

    url: str | None
    uuid: str | None = None
    path: str
    kind: Literal["image", "video", "frame"] = "image"

    @property
    def param(self) -> str:
        """Path of what tells where the image or video is."""
        if self.url is None:
            return self.uuid_param
        return f"{self.path}.{'image_url' if self.kind == 'image' else 'video_url'}.url"

    @property
    def uuid_param(self) -> str:
        """Path of the client's name for the image."""
        return f"{self.path}.uuid"


def to_prompt(
    messages: Sequence[Message], tools: Sequence[Tool] = ()
) -> tuple[dict[str, Any], list[ImageSource]]:
    """The PROMPT JSON of a conversation and its images and videos, in the order of their parts.

    The results of several calls come in the order of the calls, by which a chat template tells them apart.

    Args:
        messages: of the conversation.
        tools: those the model is told about.

    Raises:
        InvalidRequestError: a message lacks something, or has what does not belong to its role.
    """
    images: list[ImageSource] = []
    turns: list[dict[str, Any]] = []
    for i in _in_order_of_calls(messages):
        message, path = messages[i], f"messages[{i}]"
        _check_fields(message, path)
        # `developer` is OpenAI's newer name for the role that chat templates call `system`.
        role = "system" if message.role == "developer" else message.role
        turn = {"role": role, "content": _content(message, path, images)}
        if message.reasoning_content:
            turn["reasoning_content"] = message.reasoning_content
        if message.tool_calls:
            turn["tool_calls"] = [
                _call(call, f"{path}.tool_calls[{j}]") for j, call in enumerate(message.tool_calls)
            ]
        turns.append(turn)
    prompt: dict[str, Any] = {"messages": turns}
    if tools:
        prompt["tools"] = [_tool(tool) for tool in tools]
    return prompt, images


def _tool(tool: Tool) -> dict[str, Any]:
    """A tool for the chat template, with what is set of it; `strict` is no business of the model."""
    function = tool.function.model_dump(exclude_none=True, exclude={"strict"})
    return {"type": tool.type, "function": function}


def _check_fields(message: Message, path: str) -> None:
    for field, role in _FIELDS_OF_ROLES.items():
        if getattr(message, field) and message.role != role:
            raise InvalidRequestError(
                f"'{path}.{field}' is for messages of the role '{role}' only; remove it from this one.",
                code="unsupported_parameter",
                param=f"{path}.{field}",
            )
    if message.content is None and not message.tool_calls:
        raise _missing(f"{path}.content")


def _missing(param: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"Missing required parameter: '{param}'.", code="missing_required_parameter", param=param
    )


def _content(message: Message, path: str, images: list[ImageSource]) -> str | list[dict[str, Any]]:
    """The content for the chat template; its images are added to `images`."""
    if message.content is None or isinstance(message.content, str):
        return message.content or ""

    def to_part(part: ContentPart, path: str) -> dict[str, Any]:
        if isinstance(part, TextPart):
            return {"type": "text", "text": part.text}
        if message.role not in _ROLES_WITH_IMAGES:
            raise InvalidRequestError(
                "Images and videos are only allowed in messages of the user and of tools, not of the "
                f"{message.role}.",
                param=path,
            )
        if isinstance(part, VideoPart):
            video, sources = read_video(part.video_url.url, path)
            images.extend(sources)
            return video
        image_url = part.image_url or ImageUrl()
        if image_url.url is None and part.uuid is None:
            param = f"{path}.image_url" if part.image_url is None else f"{path}.image_url.url"
            raise _missing(param)
        images.append(ImageSource(url=image_url.url, uuid=part.uuid, path=path))
        return {"type": "image", "detail": image_url.detail}

    return [to_part(part, f"{path}.content[{j}]") for j, part in enumerate(message.content)]


def read_video(url: str, path: str) -> tuple[dict[str, Any], list[ImageSource]]:
    """A video as a part of the PROMPT JSON, and the file, or the frames, that it is made of."""
    if url[: len(_FRAMES)].lower() != _FRAMES:
        return {"type": "video"}, [ImageSource(url=url, path=path, kind="video")]
    frames = [
        ImageSource(url=f"data:image/jpeg;base64,{frame}", path=path, kind="frame")
        for frame in url[len(_FRAMES) :].split(",")
    ]
    return {"type": "video", "is_frames": True, "num_frames": len(frames)}, frames


def _call(call: ToolCall, path: str) -> dict[str, Any]:
    """A call for the chat template, which writes the arguments itself."""
    path += ".function.arguments"
    try:
        # Some clients send nothing for a function without parameters.
        arguments = pydantic_core.from_json(call.function.arguments or "{}", allow_inf_nan=False)
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict) or not is_finite(arguments):
        raise InvalidRequestError(
            f"Invalid value for '{path}': it must be a JSON object in a string, without infinite numbers.",
            param=path,
        )
    return {"type": "function", "function": {"name": call.function.name, "arguments": arguments}}


def _in_order_of_calls(messages: Sequence[Message]) -> Iterator[int]:
    """Indices of `messages`, the results of each message's calls in the order of the calls.

    Raises:
        InvalidRequestError: results and calls do not belong together.
    """
    i = 0
    while i < len(messages):
        start = i
        if messages[i].role != "tool":
            yield i
            start += 1
        end = start
        while end < len(messages) and messages[end].role == "tool":
            end += 1
        calls = messages[i].tool_calls or ()
        yield from _results(messages, range(start, end), calls, f"messages[{i}].tool_calls")
        i = end


def _results(
    messages: Sequence[Message], results: range, calls: Sequence[ToolCall], calls_path: str
) -> list[int]:
    """The indices `results` in the order of the `calls` that they answer."""
    places = {call.id: place for place, call in enumerate(calls)}
    if len(places) < len(calls):
        raise InvalidRequestError(
            "The ids of a message's tool calls must differ.", param=calls_path
        )
    answers: dict[int, int] = {}
    for i in results:
        message, path = messages[i], f"messages[{i}]"
        if not message.tool_call_id:
            raise _missing(f"{path}.tool_call_id")
        place = places.get(message.tool_call_id)
        if place is None or place in answers:
            raise InvalidRequestError(
                "A message of the role 'tool' must follow an assistant message that has a tool call with "
                "its 'tool_call_id', and each call has one result.",
                param=f"{path}.tool_call_id",
            )
        if message.name not in (None, "", calls[place].function.name):
            raise InvalidRequestError(
                f"'{path}.name' is not the name of the function that was called.",
                param=f"{path}.name",
            )
        answers[place] = i
    missing = [call.id for place, call in enumerate(calls) if place not in answers]
    if missing:
        raise InvalidRequestError(
            "An assistant message with 'tool_calls' must be followed by a message of the role 'tool' for "
            f"each call; there is none for {', '.join(missing)}.",
            param=calls_path,
        )
    return [answers[place] for place in sorted(answers)]
