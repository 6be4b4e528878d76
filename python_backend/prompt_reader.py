"""Reading a prompt as the proxy wrote it. Everything is checked: others may write to Triton, too."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from python_backend.chat_template import TEMPLATE_VARIABLES, Conversation, TemplateOptions
from python_backend.errors import InvalidRequestError
from python_backend.families.base import Detail, PixelBounds
from python_backend.video import FrameSampling

_DETAILS: tuple[Detail, ...] = ("auto", "low", "high")
_OPTIONS = frozenset(
    (
        *("add_generation_prompt", "continue_final_message"),
        *("chat_template_kwargs", "mm_processor_kwargs", "tools"),
    )
)
TRUNCATE = "truncate_prompt_tokens"
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


def read_prompt(prompt: Mapping[str, Any]) -> tuple[Conversation, list[MediaPart]]:
    """Check the prompt's JSON.

    Returns:
        The conversation, and its image and video parts in order.

    Raises:
        InvalidRequestError: it is not what `tensor_names.PROMPT` describes.
    """
    content = prompt.keys() - _OPTIONS - {TRUNCATE} if isinstance(prompt, Mapping) else ()
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


def read_pixel_bounds(prompt: Mapping[str, Any]) -> PixelBounds | None:
    """How large the prompt wants its images to be; None if it does not say.

    Raises:
        InvalidRequestError: the bounds are not what `tensor_names.PROMPT` describes.
    """
    values = prompt.get("mm_processor_kwargs")
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


def read_num_kept(prompt: Mapping[str, Any], max_model_len: int) -> float:
    """How many tokens at the end of the prompt are kept; no limit if the prompt sets none.

    Raises:
        InvalidRequestError: that is no number of tokens.
    """
    value = prompt.get(TRUNCATE) if isinstance(prompt, Mapping) else None
    if value is None:
        return math.inf
    if type(value) is not int or (value < 1 and value != -1):
        raise InvalidRequestError(
            f"{TRUNCATE} must be a positive integer, or -1 for what the model holds",
            param=TRUNCATE,
        )
    return max_model_len - 1 if value == -1 else value


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
