"""The messages of a conversation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints, Tag

from openai_frontend.protocol.fields import Fields, by_type, text_or_list
from openai_frontend.unsupported import (
    UNSUPPORTED_MESSAGE,
    documented,
)
from python_backend.tool_calls import FUNCTION_NAME

MAX_MESSAGES = 4096


class TextPart(Fields):
    """Text inside a message."""

    type: Literal["text"]
    text: str


class ImageUrl(Fields):
    """Where an image is, unless its part has a uuid, and how closely to look at it."""

    url: Annotated[str, StringConstraints(min_length=1)] | None = None
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(Fields):
    """An image inside a message; with a `uuid` and no URL the one that was sent with that `uuid` before."""

    type: Literal["image_url"]
    image_url: ImageUrl | None = None
    uuid: str | None = Field(None, pattern=r"^[!-~]{1,256}$")


class VideoUrl(Fields):
    """Where a video is."""

    url: str = Field(min_length=1)


class VideoPart(Fields):
    """A video inside a message."""

    type: Literal["video_url"]
    video_url: VideoUrl


ContentPart = Annotated[
    Annotated[TextPart, Tag("<text>")]
    | Annotated[ImagePart, Tag("<image_url>")]
    | Annotated[VideoPart, Tag("<video_url>")],
    by_type("Content parts", "text", "image_url", "video_url"),
]
Content = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[list[ContentPart], Field(min_length=1), Tag("<list>")],
    text_or_list("content parts"),
]
FunctionName = Annotated[str, StringConstraints(pattern=FUNCTION_NAME)]


class FunctionCall(Fields):
    """Which function to call; the arguments are JSON."""

    name: FunctionName
    arguments: str


class ToolCall(Fields):
    """A call that the model wrote."""

    id: str = Field(min_length=1, max_length=512)
    type: Literal["function"]
    function: FunctionCall


class Message(Fields):
    """One turn of a conversation; `conversation` says which fields belong to which role."""

    model_config = ConfigDict(json_schema_extra=documented(UNSUPPORTED_MESSAGE))

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
