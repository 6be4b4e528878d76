"""The PROMPT JSON of a request with messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openai_frontend.conversation import ImageSource, to_prompt
from openai_frontend.protocol.messages import Message
from openai_frontend.protocol.prompt_options import ConversationFields
from openai_frontend.protocol.tools import Tool
from openai_frontend.settings import Settings
from openai_frontend.videos import set_sampling


def prompt_of(
    request: ConversationFields,
    messages: Sequence[Message],
    settings: Settings,
    tools: Sequence[Tool] = (),
) -> tuple[dict[str, Any], list[ImageSource]]:
    """The conversation, what the request asks of its template and media, and its images and videos.

    Raises:
        InvalidRequestError: names the message at fault.
    """
    prompt, sources = to_prompt(messages, tools)
    set_sampling(prompt, request.media_io_kwargs, settings)
    return prompt | request.prompt_options(), sources
