"""From chat messages to the PROMPT JSON and the images it refers to, in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from openai_frontend.protocol import ImagePart, Message
from python_backend.errors import InvalidRequestError


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSource:
    """Where one image of the prompt comes from.

    Attributes:
        url: `http:`, `https:`, `data:` or `file:` URL as the client wrote it.
        param: path of that URL in the request, for error messages.
    """

    url: str
    param: str


def to_prompt(messages: Sequence[Message]) -> tuple[dict[str, Any], list[ImageSource]]:
    """The PROMPT JSON of a conversation and its images; the i-th image part is the i-th image.

    Raises:
        InvalidRequestError: an image is in a message that cannot have one.
    """
    images: list[ImageSource] = []
    turns: list[dict[str, Any]] = []
    for i, message in enumerate(messages):
        # `developer` is OpenAI's newer name for the role that chat templates call `system`.
        role = "system" if message.role == "developer" else message.role
        if isinstance(message.content, str):
            turns.append({"role": role, "content": message.content})
            continue
        parts: list[dict[str, str]] = []
        for j, part in enumerate(message.content):
            if not isinstance(part, ImagePart):
                parts.append({"type": "text", "text": part.text})
                continue
            path = f"messages[{i}].content[{j}]"
            if role != "user":
                raise InvalidRequestError(
                    f"Images are only allowed in messages of the user, not of the {message.role}.",
                    param=path,
                )
            images.append(ImageSource(url=part.image_url.url, param=f"{path}.image_url.url"))
            parts.append({"type": "image", "detail": part.image_url.detail})
        turns.append({"role": role, "content": parts})
    return {"messages": turns}, images
