"""ChatService: from a request body to an answer, for every endpoint that generates."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

from openai_frontend.answers import Answer, AnswerOptions, Choice
from openai_frontend.anthropic_answers import MessagesAnswer
from openai_frontend.anthropic_messages import MessagesRequest
from openai_frontend.anthropic_messages import in_client_words as in_anthropics_words
from openai_frontend.backend import Backend
from openai_frontend.chat_answers import ChatAnswer
from openai_frontend.completion_answers import CompletionAnswer
from openai_frontend.conversation import ImageSource
from openai_frontend.error_fields import fields_called
from openai_frontend.generation import Generation, Tally, deltas_of
from openai_frontend.media import MediaLoader
from openai_frontend.model_choice import find_model, to_chat
from openai_frontend.prompts import prompt_of
from openai_frontend.protocol.requests import (
    ChatCompletionRequest,
    CompletionRequest,
    GenerationFields,
)
from openai_frontend.protocol.tools import Tool
from openai_frontend.record import RequestRecord
from openai_frontend.response_answers import ResponsesAnswer
from openai_frontend.response_history import ResponseHistory
from openai_frontend.response_store import ResponseStore
from openai_frontend.responses_api import ResponsesRequest, in_client_words
from openai_frontend.sampling import cache_salt_of, caller_of, num_logprobs_of, sampling_of
from openai_frontend.settings import Settings
from openai_frontend.structured_output import grammar_of
from openai_frontend.token_estimate import estimate_output_tokens, estimate_prompt_tokens
from openai_frontend.tokenization import text_of
from openai_frontend.tools import callable_tools, tool_grammar
from openai_frontend.validation import parse_body
from python_backend.errors import VlmError

_log = logging.getLogger(__name__)


class ChatService:
    """Answers requests with a backend; knows nothing of HTTP but the bytes of bodies."""

    def __init__(
        self,
        settings: Settings,
        backend: Backend,
        media: MediaLoader,
        responses: ResponseStore,
    ) -> None:
        self._settings = settings
        self._backend = backend
        self._media = media
        self._responses = responses

    async def prepare_chat(self, body: bytes | bytearray, record: RequestRecord) -> Generation:
        """Check a body of `/v1/chat/completions` and load its images.

        Raises:
            VlmError: the request is wrong, or Triton cannot be asked about the model.
        """
        request = parse_body(body, ChatCompletionRequest)
        return await self._prepare_chat(request, ChatAnswer, record)

    async def prepare_messages(self, body: bytes | bytearray, record: RequestRecord) -> Generation:
        """Check a body of `/v1/messages` and load its images.

        Raises:
            VlmError: the request is wrong, or Triton cannot be asked about the model.
        """
        request = await to_chat(self._backend, parse_body(body, MessagesRequest))
        generation = await self._prepare_chat(request, MessagesAnswer, record)
        generation.in_client_words = in_anthropics_words
        return generation

    async def prepare_response(self, body: bytes | bytearray, record: RequestRecord) -> Generation:
        """Check a body of `/v1/responses` and load its images.

        Raises:
            VlmError: the request is wrong, or Triton cannot be asked about the model.
        """
        request = parse_body(body, ResponsesRequest)
        history = ResponseHistory(
            self._responses, record.api_key, request, self._settings.max_body_bytes
        )
        chat = request.chat_messages(history.earlier_items())
        paths = chat.paths  # without the messages and their images

        def rename(text: str) -> str:
            return in_client_words(paths.in_client_words(text))

        answer_type = partial(ResponsesAnswer, request=request, keep=history.keep)
        with fields_called(rename):
            generation = await self._prepare_chat(request.to_chat(chat), answer_type, record)
        generation.in_client_words = rename
        return generation

    async def prepare_completion(
        self, body: bytes | bytearray, record: RequestRecord
    ) -> Generation:
        """Check a body of `/v1/completions`.

        Raises:
            VlmError: the request is wrong, or Triton cannot be asked about the model.
        """
        request = parse_body(body, CompletionRequest)
        key = "prompt" if isinstance(request.prompt, str) else "prompt_token_ids"
        prompt = {key: request.prompt}
        echo = await self._prompt_text(request) if request.echo else None
        return await self._prepare(request, prompt, "prompt", (), CompletionAnswer, record, echo)

    async def _prompt_text(self, request: CompletionRequest) -> str:
        if isinstance(request.prompt, str):
            return request.prompt
        model = await find_model(self._backend, request.model, {}, ())
        return await text_of(self._backend, model, request.prompt, "prompt")

    async def answer(self, generation: Generation, record: RequestRecord) -> bytes:
        """The whole answer.

        Raises:
            VlmError: the generation was refused or failed.
        """
        choices = [Choice() for _ in range(generation.num_choices)]
        tally = Tally(generation, record)
        async with aclosing(deltas_of(self._backend, generation, tally)) as deltas:
            async for delta in deltas:
                choices[delta.index].add(delta)
        return generation.answer.whole(choices, tally.usage())

    async def events(
        self, generation: Generation, record: RequestRecord
    ) -> AsyncGenerator[bytes, None]:
        """The answer as server-sent events.

        Raises:
            VlmError: the generation failed before the first event. Later errors are events.
        """
        tally = Tally(generation, record)
        started: set[int] = set()
        is_sent = False
        try:
            async with aclosing(deltas_of(self._backend, generation, tally)) as deltas:
                async for delta in deltas:
                    is_first = delta.index not in started
                    started.add(delta.index)
                    data = generation.answer.chunks(delta, is_first=is_first)
                    if data:
                        is_sent = True
                        yield data
            yield generation.answer.ending(tally.usage())
        except VlmError as error:
            if not is_sent:
                raise
            _log.error("request %s failed while streaming: %s", record.request_id, error)
            record.error = error.code or type(error).__name__
            yield generation.answer.failure(error)

    async def _prepare_chat(
        self,
        request: ChatCompletionRequest,
        answer_type: Callable[..., Answer],
        record: RequestRecord,
    ) -> Generation:
        tools = callable_tools(request)
        prompt, sources = prompt_of(request, request.messages, self._settings, tools)
        return await self._prepare(
            request, prompt, "messages", sources, answer_type, record, tools=tools
        )

    async def _prepare(
        self,
        request: GenerationFields,
        prompt: dict[str, Any],
        prompt_param: str,
        sources: Sequence[ImageSource],
        answer_type: Callable[..., Answer],
        record: RequestRecord,
        echo: str | None = None,
        tools: Sequence[Tool] = (),
    ) -> Generation:
        sampling = sampling_of(request, self._settings.max_n)
        if (salt := cache_salt_of(request, record.api_key)) is not None:
            sampling["cache_salt"] = salt
        if record.api_key is not None:
            sampling["caller"] = caller_of(record.api_key)
        if request.truncate_prompt_tokens is not None:
            prompt = {**prompt, "truncate_prompt_tokens": request.truncate_prompt_tokens}
        grammar = grammar_of(request)
        model = await find_model(self._backend, request.model, prompt, sources)
        record.model = model.id
        tool_format = None
        if isinstance(request, ChatCompletionRequest):
            if tools and model.tool_format is not None:
                tool_format = model.tool_format
                grammar = tool_grammar(request, tools, tool_format, grammar)
        elif model.reasons:
            sampling["separate_reasoning"] = False  # a completion is one text
        if grammar is not None:
            sampling["grammar"] = grammar[1]
        record.reserve_tokens(
            estimate_prompt_tokens(prompt, len(sources)), estimate_output_tokens(sampling)
        )
        return Generation(
            model=model,
            prompt=prompt,
            prompt_param=prompt_param,
            images=await self._media.load(sources, model.max_images, record.api_key),
            sampling=sampling,
            grammar_param=None if grammar is None else grammar[0],
            tool_format=tool_format,
            answer=answer_type(
                answer_id=uuid.uuid4().hex,
                created=int(time.time()),
                model=request.model,
                fingerprint=model.fingerprint,
                options=AnswerOptions(
                    has_logprobs=num_logprobs_of(request) is not None,
                    include_usage=request.include_usage,
                    has_running_usage=request.has_running_usage,
                    has_token_ids=bool(request.return_token_ids),
                    has_prompt_logprobs=request.prompt_logprobs is not None,
                    num_choices=request.n or 1,
                    echo=echo,
                    may_call=tool_format is not None,
                ),
            ),
            is_stream=bool(request.stream),
        )
