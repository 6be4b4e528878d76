"""Generation: a checked request, what the backend makes of it, and the count of that."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any

from openai_frontend.answers import Answer
from openai_frontend.backend import Backend, Delta, ModelInfo, Usage
from openai_frontend.error_fields import fields_called, prompt_called
from openai_frontend.record import RequestRecord
from openai_frontend.tool_parser import ToolCallParser
from python_backend.errors import EngineError, InvalidRequestError
from python_backend.tool_calls import ToolFormat


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

    @contextmanager
    def fields_called(self) -> Iterator[None]:
        """Put the client's names of fields into errors of the stages."""
        with fields_called(self.in_client_words):
            try:
                with prompt_called(self.prompt_param):
                    yield
            except InvalidRequestError as error:
                if self.grammar_param and (error.param or "").startswith("grammar"):
                    error.param = self.grammar_param
                raise


class Tally:
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
            video_tokens=first.video_tokens,
            cached_tokens=first.cached_tokens,
            reasoning_tokens=sum(usage.reasoning_tokens for usage in usages),
            draft_tokens=sum(usage.draft_tokens for usage in usages),
            accepted_draft_tokens=sum(usage.accepted_draft_tokens for usage in usages),
        )


async def deltas_of(
    backend: Backend, generation: Generation, tally: Tally
) -> AsyncGenerator[Delta, None]:
    """The backend's deltas, counted; errors name the client's fields.

    Raises:
        VlmError: the generation was refused or failed.
    """
    stream = backend.generate(
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
    with generation.fields_called():
        async with aclosing(stream):
            async for delta in stream:
                tally.count(delta)
                yield parsers[delta.index].parse(delta) if parsers else delta
    tally.check_complete()
