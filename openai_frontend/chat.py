"""ChatService: from a request body to an answer, for every endpoint that takes a prompt."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

from openai_frontend.anthropic_answers import MessagesAnswer
from openai_frontend.anthropic_messages import CountTokensRequest, MessagesRequest
from openai_frontend.backend import Backend, Delta, ModelInfo, Usage
from openai_frontend.conversation import ImageSource, to_prompt
from openai_frontend.errors import ModelNotFoundError
from openai_frontend.media import MediaLoader
from openai_frontend.protocol import (
    ChatCompletionRequest,
    CompletionRequest,
    ConversationFields,
    GenerationFields,
    Message,
    Tool,
)
from openai_frontend.record import RequestRecord
from openai_frontend.response_answers import ResponsesAnswer
from openai_frontend.response_history import ResponseHistory
from openai_frontend.response_store import ResponseStore
from openai_frontend.responses import Answer, AnswerOptions, ChatAnswer, Choice, CompletionAnswer
from openai_frontend.responses_api import ResponsesRequest, in_client_words
from openai_frontend.sampling import cache_salt_of, num_logprobs_of, sampling_of
from openai_frontend.settings import Settings
from openai_frontend.structured_output import grammar_of
from openai_frontend.token_estimate import estimate_output_tokens, estimate_prompt_tokens
from openai_frontend.tokenize_requests import DetokenizeRequest, TokenizeRequest
from openai_frontend.tool_parser import ToolCallParser
from openai_frontend.tools import callable_tools, tool_grammar
from openai_frontend.validation import parse_body
from openai_frontend.videos import set_sampling
from python_backend.errors import EngineError, InvalidRequestError, VlmError
from python_backend.tool_calls import ToolFormat

_log = logging.getLogger(__name__)
# What the stages call the conversation or text; the client knows it by its own field.
_PROMPT_PARAMS = ("messages", "prompt", "prompt_token_ids")


@dataclass(slots=True, kw_only=True)
class Generation:
    """A checked request, ready to be sent to the backend.

    Attributes:
        model: serves the request.
        prompt: PROMPT JSON.
        prompt_param: field of the request that the prompt came from.
        images: encoded files, until they are taken.
        sampling: SAMPLING JSON.
        grammar_param: field of the request that its grammar came from, if it has one.
        tool_format: how the model writes the tool calls that the answer may have; None for none.
        answer: shape of the answer.
        is_stream: whether the client wants events.
        in_client_words: gives fields in an error of a stage the names that the client knows.
    """

    model: ModelInfo
    prompt: dict[str, Any]
    prompt_param: str
    images: list[bytes]
    sampling: dict[str, Any]
    grammar_param: str | None
    tool_format: ToolFormat | None
    answer: Answer
    is_stream: bool
    in_client_words: Callable[[str], str] = str

    @property
    def num_choices(self) -> int:
        """How many choices the client wants."""
        return int(self.sampling.get("n", 1))

    def take_images(self) -> list[bytes]:
        """The images, which nothing but the caller holds from then on: they may be large."""
        images, self.images = self.images, []
        return images


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
        request = parse_body(body, MessagesRequest).to_chat()
        return await self._prepare_chat(request, MessagesAnswer, record)

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
        answer_type = partial(ResponsesAnswer, request=request, keep=history.keep)
        try:
            generation = await self._prepare_chat(request.to_chat(chat), answer_type, record)
        except InvalidRequestError as error:
            _rename_fields(error, lambda text: in_client_words(chat.in_client_words(text)))
            raise
        generation.in_client_words = in_client_words
        return generation

    async def count_tokens(self, body: bytes | bytearray, record: RequestRecord) -> int:
        """How many tokens a conversation has, for `/v1/messages/count_tokens`.

        Raises:
            VlmError: the request is wrong, or Triton cannot be asked.
        """
        request = parse_body(body, CountTokensRequest).to_chat()
        prompt, sources = self._to_prompt(request, request.messages, callable_tools(request))
        model = await self._find_model(request.model, prompt, sources)
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
            prompt, sources = self._to_prompt(request, request.messages)
        model = await self._find_model(request.model, prompt, sources)
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
        model = await self._find_model(request.model, {}, ())
        record.model = model.id
        return await self._detokenize(model, request.tokens, "tokens")

    async def _detokenize(self, model: ModelInfo, token_ids: Sequence[int], param: str) -> str:
        try:
            return await self._backend.detokenize(model.triton_name, token_ids)
        except InvalidRequestError as error:
            if error.param in _PROMPT_PARAMS:
                error.param = param
            raise

    async def _tokenize(
        self,
        model: ModelInfo,
        prompt: dict[str, Any],
        sources: Sequence[ImageSource],
        record: RequestRecord,
    ) -> list[int]:
        record.model = model.id
        images = await self._media.load(sources, model.max_images)
        try:
            return await self._backend.tokenize(model.triton_name, prompt, images)
        except InvalidRequestError as error:
            if error.param in _PROMPT_PARAMS:
                error.param = "messages" if "messages" in prompt else "prompt"
            raise

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
        model = await self._find_model(request.model, {}, ())
        return await self._detokenize(model, request.prompt, "prompt")

    async def answer(self, generation: Generation, record: RequestRecord) -> bytes:
        """The whole answer.

        Raises:
            VlmError: the generation was refused or failed.
        """
        choices = [Choice() for _ in range(generation.num_choices)]
        tally = _Tally(generation, record)
        async with aclosing(self._deltas(generation, tally)) as deltas:
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
        tally = _Tally(generation, record)
        started: set[int] = set()
        is_sent = False
        try:
            async with aclosing(self._deltas(generation, tally)) as deltas:
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
        prompt, sources = self._to_prompt(request, request.messages, tools)
        return await self._prepare(
            request, prompt, "messages", sources, answer_type, record, tools=tools
        )

    def _to_prompt(
        self, request: ConversationFields, messages: Sequence[Message], tools: Sequence[Tool] = ()
    ) -> tuple[dict[str, Any], list[ImageSource]]:
        prompt, sources = to_prompt(messages, tools)
        set_sampling(prompt, request.media_io_kwargs, self._settings)
        return prompt | request.prompt_options(), sources

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
        grammar = grammar_of(request)
        model = await self._find_model(request.model, prompt, sources)
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
            images=await self._media.load(sources, model.max_images),
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

    async def _find_model(
        self, name: str, prompt: dict[str, Any], sources: Sequence[ImageSource]
    ) -> ModelInfo:
        model = await self._backend.find_model(name)
        if model is None:
            raise ModelNotFoundError(name)
        if sources and model.max_images == 0:
            raise InvalidRequestError(
                f"The model `{model.id}` is text-only: send the request without images, or ask a "
                "model that sees them.",
                param=sources[0].param,
            )
        _check_capabilities(prompt, model)
        video = next((source for source in sources if source.kind != "image"), None)
        if video is not None and not model.takes_videos:
            raise InvalidRequestError(
                f"The model `{model.id}` takes no videos: send pictures, or ask a model that takes videos.",
                code="unsupported_value",
                param=video.param,
            )
        return model

    async def _deltas(self, generation: Generation, tally: _Tally) -> AsyncGenerator[Delta, None]:
        """The backend's deltas, counted; errors name the client's fields."""
        stream = self._backend.generate(
            generation.model.triton_name,
            tally.record.backend_request_id,
            generation.prompt,
            generation.take_images(),
            generation.sampling,
            tally.record.traceparent,
        )
        parsers = []
        if (form := generation.tool_format) is not None:
            parsers = [ToolCallParser(form) for _ in range(generation.num_choices)]
        async with aclosing(stream):
            try:
                async for delta in stream:
                    tally.count(delta)
                    yield parsers[delta.index].parse(delta) if parsers else delta
            except InvalidRequestError as error:
                if error.param in _PROMPT_PARAMS:
                    error.param = generation.prompt_param
                elif generation.grammar_param and (error.param or "").startswith("grammar"):
                    error.param = generation.grammar_param
                _rename_fields(error, generation.in_client_words)
                raise
        tally.check_complete()


def _rename_fields(error: InvalidRequestError, in_client_words: Callable[[str], str]) -> None:
    error.message = in_client_words(error.message)
    if error.param is not None:
        error.param = in_client_words(error.param)


class _Tally:
    """Counts what a generation has produced."""

    def __init__(self, generation: Generation, record: RequestRecord) -> None:
        self.record = record
        self._num_choices = generation.num_choices
        self._usages: dict[int, Usage] = {}

    def count(self, delta: Delta) -> None:
        """Note one delta.

        Raises:
            EngineError: the backend breaks its contract.
        """
        if not 0 <= delta.index < self._num_choices or delta.index in self._usages:
            raise EngineError(f"the backend sent text for choice {delta.index}, which is not open")
        if delta.token_ids or not delta.prompt_logprobs:
            self.record.tokens_arrived(len(delta.token_ids))
        self.record.timing = delta.timing
        if delta.finish_reason is not None:
            self.record.finish_reasons.append(delta.finish_reason)
            self._usages[delta.index] = delta.usage or Usage(prompt_tokens=0, completion_tokens=0)
            usage = self.usage()
            self.record.prompt_tokens = usage.prompt_tokens
            self.record.completion_tokens = usage.completion_tokens
            self.record.cached_tokens = usage.cached_tokens
            self.record.draft_tokens = usage.draft_tokens
            self.record.accepted_draft_tokens = usage.accepted_draft_tokens
            self.record.num_choices = len(self._usages)

    def check_complete(self) -> None:
        """Fail unless every choice has ended.

        Raises:
            EngineError: the backend stopped too early.
        """
        if len(self._usages) < self._num_choices:
            raise EngineError(
                f"the backend ended {len(self._usages)} of {self._num_choices} choices"
            )

    def usage(self) -> Usage:
        """Tokens of the request: one prompt, all choices that have ended."""
        usages = self._usages.values()
        first = next(iter(usages))
        return Usage(
            prompt_tokens=first.prompt_tokens,
            completion_tokens=sum(usage.completion_tokens for usage in usages),
            image_tokens=first.image_tokens,
            cached_tokens=first.cached_tokens,
            reasoning_tokens=sum(usage.reasoning_tokens for usage in usages),
            draft_tokens=sum(usage.draft_tokens for usage in usages),
            accepted_draft_tokens=sum(usage.accepted_draft_tokens for usage in usages),
            video_tokens=first.video_tokens,
        )


def _check_capabilities(prompt: dict[str, Any], model: ModelInfo) -> None:
    """Refuse what the model's chat template would leave out."""
    messages = prompt.get("messages", ())
    has_tools = "tools" in prompt
    if model.tool_format is None and (
        has_tools or any(turn["role"] == "tool" or "tool_calls" in turn for turn in messages)
    ):
        raise InvalidRequestError(
            f"The model `{model.id}` calls no tools: its chat template takes none, or asks for calls in a "
            "form that this server does not know.",
            code="unsupported_parameter",
            param="tools" if has_tools else "messages",
        )
    if not model.reasons and any("reasoning_content" in turn for turn in messages):
        raise InvalidRequestError(
            f"The model `{model.id}` does not reason: send its messages without 'reasoning_content'.",
            code="unsupported_parameter",
            param="messages",
        )
