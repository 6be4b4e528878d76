"""What an answer is made of, and what every shape of it can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from openai_frontend.backend import Delta, Usage


@dataclass(slots=True)
class Choice:
    """One choice of an answer that is not streamed, as far as it has arrived.

    A member of `tool_calls` has the id, the name and the arguments as JSON.
    """

    text: str = ""
    reasoning: str = ""
    tool_calls: list[dict[str, str]] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str | None = None
    matched_stop: int | str | None = None
    token_ids: list[int] = field(default_factory=list)
    prompt_token_ids: Sequence[int] = ()
    prompt_logprobs: list[dict[str, dict[str, Any]]] = field(default_factory=list)

    def add(self, delta: Delta) -> None:
        """Append what `delta` brings."""
        self.text += delta.text
        self.reasoning += delta.reasoning
        for call in delta.tool_calls:
            if call.id is not None and call.name is not None:
                self.tool_calls.append({"id": call.id, "name": call.name, "arguments": ""})
            self.tool_calls[call.index]["arguments"] += call.arguments
        self.token_ids += delta.token_ids
        self.prompt_token_ids = delta.prompt_token_ids or self.prompt_token_ids
        self.prompt_logprobs += delta.prompt_logprobs
        self.logprobs += delta.logprobs or ()
        if delta.finish_reason is not None:
            self.finish_reason = delta.finish_reason
            self.matched_stop = delta.matched_stop

    @property
    def mean_logprob(self) -> float:
        """Of its tokens, whose log probabilities must have been asked for."""
        total: float = sum(item["logprob"] for item in self.logprobs)
        return total / max(len(self.logprobs), 1)


def best_choices(choices: Sequence[Choice], num_choices: int) -> Sequence[Choice]:
    """The likeliest choices per token, likeliest first; all in their order if none is too many."""
    if len(choices) <= num_choices:
        return choices
    return sorted(choices, key=lambda choice: -choice.mean_logprob)[:num_choices]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerOptions:
    """What the client wants to be told.

    Attributes:
        has_logprobs: log probabilities of the generated tokens.
        include_usage: a last chunk of a stream with its usage.
        has_running_usage: the usage so far in every other chunk too.
        has_token_ids: ids of the prompt's and the generated tokens.
        has_prompt_logprobs: log probabilities of the prompt's tokens.
        num_choices: the best of those that were generated.
        echo: text of the prompt, to be put before the answer; None: nothing of it.
        may_call: the content as `null` where tool calls take its place.
    """

    has_logprobs: bool = False
    include_usage: bool = False
    has_running_usage: bool = False
    has_token_ids: bool = False
    has_prompt_logprobs: bool = False
    num_choices: int = 1
    echo: str | None = None
    may_call: bool = False


class Answer(ABC):
    """The shape of one endpoint's answers to one request."""

    @abstractmethod
    def chunks(self, delta: Delta, *, is_first: bool) -> bytes:
        """Events for one delta; `is_first` tells that it is the first one of its choice."""

    @abstractmethod
    def ending(self, usage: Usage) -> bytes:
        """The events after the last choice has ended."""

    @abstractmethod
    def failure(self, error: BaseException) -> bytes:
        """The last event of a stream that fails after its first one."""

    @abstractmethod
    def whole(self, choices: Sequence[Choice], usage: Usage) -> bytes:
        """The body of an answer that is not streamed."""
