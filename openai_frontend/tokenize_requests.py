"""Bodies of the two endpoints that go from text to tokens and back."""

from __future__ import annotations

from pydantic import Field, model_validator

from openai_frontend.protocol.fields import Fields
from openai_frontend.protocol.messages import Message
from openai_frontend.protocol.prompt_options import ConversationFields
from openai_frontend.protocol.requests import TokenIds
from python_backend.errors import InvalidRequestError


class TokenizeRequest(ConversationFields):
    """Body of `POST /tokenize`; a conversation is tokenized as it would be for an answer."""

    model: str = Field(min_length=1, max_length=512)
    prompt: str | None = None
    messages: list[Message] | None = Field(None, min_length=1, max_length=4096)

    @model_validator(mode="after")
    def _check_one_of_both(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequestError("Send either 'prompt' or 'messages'.", param="prompt")
        if self.prompt is not None and (options := self.prompt_options()):
            raise InvalidRequestError(
                f"'{min(options)}' is about 'messages'; send it without 'prompt'.",
                param=min(options),
            )
        return self


class DetokenizeRequest(Fields):
    """Body of `POST /detokenize`."""

    model: str = Field(min_length=1, max_length=512)
    tokens: TokenIds
