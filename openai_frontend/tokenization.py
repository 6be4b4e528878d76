"""Tokenization: from text or a conversation to tokens and back, without an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openai_frontend.anthropic_messages import CountTokensRequest, in_client_words
from openai_frontend.backend import Backend, ModelInfo
from openai_frontend.conversation import ImageSource
from openai_frontend.error_fields import fields_called, prompt_called
from openai_frontend.media import MediaLoader
from openai_frontend.model_choice import find_model, to_chat
from openai_frontend.prompts import prompt_of
from openai_frontend.record import RequestRecord
from openai_frontend.settings import Settings
from openai_frontend.tokenize_requests import DetokenizeRequest, TokenizeRequest
from openai_frontend.tools import callable_tools
from openai_frontend.validation import parse_body


class Tokenization:
    """Asks the stages what the tokens of a prompt are."""

    def __init__(self, settings: Settings, backend: Backend, media: MediaLoader) -> None:
        self._settings = settings
        self._backend = backend
        self._media = media

    async def count_tokens(self, body: bytes | bytearray, record: RequestRecord) -> int:
        """How many tokens a conversation has, for `/v1/messages/count_tokens`.

        Raises:
            VlmError: the request is wrong, or Triton cannot be asked.
        """
        request = await to_chat(self._backend, parse_body(body, CountTokensRequest))
        tools = callable_tools(request)
        prompt, sources = prompt_of(request, request.messages, self._settings, tools)
        model = await find_model(self._backend, request.model, prompt, sources)
        with fields_called(in_client_words):
            return len(await self._tokenize(model, prompt, sources, record))

    async def tokenize(self, body: bytes | bytearray, record: RequestRecord) -> dict[str, Any]:
        """The answer to a body of `/tokenize`.

        Raises:
            VlmError: the request is wrong, or Triton cannot be asked.
        """
        request = parse_body(body, TokenizeRequest)
        prompt: dict[str, Any] = {"prompt": request.prompt}
        sources: Sequence[ImageSource] = ()
        if request.messages is not None:
            prompt, sources = prompt_of(request, request.messages, self._settings)
        model = await find_model(self._backend, request.model, prompt, sources)
        token_ids = await self._tokenize(model, prompt, sources, record)
        return {
            "count": len(token_ids),
            "max_model_len": model.max_model_len,
            "tokens": token_ids,
            "token_strs": None,
        }

    async def detokenize(self, body: bytes | bytearray, record: RequestRecord) -> str:
        """The text that a body of `/detokenize` asks for.

        Raises:
            VlmError: the request is wrong, or Triton cannot be asked.
        """
        request = parse_body(body, DetokenizeRequest)
        model = await find_model(self._backend, request.model, {}, ())
        record.model = model.id
        return await text_of(self._backend, model, request.tokens, "tokens")

    async def _tokenize(
        self,
        model: ModelInfo,
        prompt: dict[str, Any],
        sources: Sequence[ImageSource],
        record: RequestRecord,
    ) -> list[int]:
        record.model = model.id
        images = await self._media.load(sources, model.max_images, record.api_key)
        with prompt_called("messages" if "messages" in prompt else "prompt"):
            return await self._backend.tokenize(model.triton_name, prompt, images)


async def text_of(backend: Backend, model: ModelInfo, token_ids: Sequence[int], param: str) -> str:
    """The text of tokens that the client has sent as the field `param`."""
    with prompt_called(param):
        return await backend.detokenize(model.triton_name, token_ids)
