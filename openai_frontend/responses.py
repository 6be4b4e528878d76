"""The JSON of answers, whole and in chunks.

On the token path a chunk is a constant prefix, the encoded text and a constant suffix: building and
serializing a model for every token costs more than everything else the proxy does for it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from openai_frontend.backend import Delta, ToolCallDelta, Usage
from openai_frontend.errors import error_body
from openai_frontend.sse import DONE, dumps, event


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

    def add(self, delta: Delta) -> None:
        """Append what `delta` brings."""
        self.text += delta.text
        self.reasoning += delta.reasoning
        for call in delta.tool_calls:
            if call.id is not None and call.name is not None:
                self.tool_calls.append({"id": call.id, "name": call.name, "arguments": ""})
            self.tool_calls[call.index]["arguments"] += call.arguments
        self.logprobs += delta.logprobs or ()
        if delta.finish_reason is not None:
            self.finish_reason = delta.finish_reason
            self.matched_stop = delta.matched_stop


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


class OpenAIAnswer(Answer):
    """What the answers of OpenAI's two endpoints share.

    Args:
        answer_id: hexadecimal digits of the id.
        created: Unix time.
        model: name as the client wrote it.
        fingerprint: of the served configuration.
        has_logprobs: whether the client asked for log probabilities.
        include_usage: whether the stream ends with a usage chunk.
        may_call: whether the answer may be tool calls, without content.
    """

    id_prefix: ClassVar[str]
    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]

    def __init__(
        self,
        *,
        answer_id: str,
        created: int,
        model: str,
        fingerprint: str,
        has_logprobs: bool,
        include_usage: bool,
        may_call: bool,
    ) -> None:
        self._may_call = may_call
        self._head: dict[str, Any] = {
            "id": self.id_prefix + answer_id,
            "object": self.whole_object,
            "created": created,
            "model": model,
            "system_fingerprint": fingerprint,
        }
        self._has_logprobs = has_logprobs
        self._include_usage = include_usage
        self._chunk_prefix = dumps(self._head | {"object": self.chunk_object})[:-1] + ',"choices":['
        self._chunk_suffix = '],"usage":null}' if include_usage else "]}"

    def chunks(self, delta: Delta, *, is_first: bool) -> bytes:
        """Events for one delta."""
        data = self._start_event(delta.index) if is_first else b""
        logprobs = self._logprobs(delta.logprobs or (), delta) if self._has_logprobs else None
        if delta.text or logprobs or delta.reasoning or delta.tool_calls:
            encoded = "null" if logprobs is None else dumps(logprobs)
            for content in self._contents(delta):
                data += self._event(self._content_choice(delta.index, content, encoded))
                encoded = "null"
        if delta.finish_reason is not None:
            ending = (
                f'"logprobs":null,"finish_reason":{dumps(delta.finish_reason)},'
                f'"matched_stop":{dumps(delta.matched_stop)}'
            )
            data += self._event(self._end_choice(delta.index, ending))
        return data

    def ending(self, usage: Usage) -> bytes:
        """A chunk with the usage, if the client wants to know it, and the mark of the end."""
        if not self._include_usage:
            return DONE
        return event(f'{self._chunk_prefix}],"usage":{dumps(usage_json(usage))}}}') + DONE

    def failure(self, error: BaseException) -> bytes:
        """The client's library raises when it reads this event."""
        return event(dumps(error_body(error)))

    def whole(self, choices: Sequence[Choice], usage: Usage) -> bytes:
        """The choices in one object."""
        body = self._head | {
            "choices": [self._whole_choice(i, choice) for i, choice in enumerate(choices)],
            "usage": usage_json(usage),
            "metadata": {"weight_version": "default"},
        }
        return dumps(body).encode("utf-8", "replace")

    def _event(self, choice: str) -> bytes:
        return event(f"{self._chunk_prefix}{choice}{self._chunk_suffix}")

    def _start_event(self, index: int) -> bytes:
        """What comes before the first text of a choice."""
        return b""

    @abstractmethod
    def _contents(self, delta: Delta) -> Sequence[str]:
        """What `delta` brings, as JSON of one or more chunks."""

    @abstractmethod
    def _content_choice(self, index: int, content: str, logprobs: str) -> str:
        """JSON of a choice that brings one of `_contents`; `logprobs` is JSON, too."""

    @abstractmethod
    def _end_choice(self, index: int, ending: str) -> str:
        """JSON of a choice that ends; `ending` holds the last members of the object."""

    @abstractmethod
    def _whole_choice(self, index: int, choice: Choice) -> dict[str, Any]:
        """A choice of an answer that is not streamed."""

    @abstractmethod
    def _logprobs(
        self, logprobs: Sequence[dict[str, Any]], delta: Delta | None
    ) -> dict[str, Any] | None:
        """The `logprobs` object of a chunk (`delta` given) or of a whole choice."""


class ChatAnswer(OpenAIAnswer):
    """Answers of `/v1/chat/completions`."""

    id_prefix = "chatcmpl-"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def _start_event(self, index: int) -> bytes:
        content = "null" if self._may_call else '""'
        return self._event(
            f'{{"index":{index},"delta":{{"role":"assistant","content":{content},"refusal":null}},'
            '"logprobs":null,"finish_reason":null,"matched_stop":null}'
        )

    def _contents(self, delta: Delta) -> Sequence[str]:
        if not (delta.reasoning or delta.tool_calls):
            # Text that is held back, because it may begin a call, leaves log probabilities alone.
            is_nothing = self._may_call and not delta.text
            return ("" if is_nothing else f'"content":{dumps(delta.text)}',)
        contents = []
        if delta.reasoning:
            contents.append(f'"reasoning_content":{dumps(delta.reasoning)}')
        if delta.text:
            contents.append(f'"content":{dumps(delta.text)}')
        # Each in its own chunk: clients take members of one list for different calls.
        return [*contents, *(f'"tool_calls":[{_call_chunk(call)}]' for call in delta.tool_calls)]

    def _content_choice(self, index: int, content: str, logprobs: str) -> str:
        return (
            f'{{"index":{index},"delta":{{{content}}},"logprobs":{logprobs},'
            '"finish_reason":null,"matched_stop":null}'
        )

    def _end_choice(self, index: int, ending: str) -> str:
        return f'{{"index":{index},"delta":{{}},{ending}}}'

    def _whole_choice(self, index: int, choice: Choice) -> dict[str, Any]:
        return {
            "index": index,
            "message": {
                "role": "assistant",
                "content": choice.text if choice.text or not choice.tool_calls else None,
                "refusal": None,
                "reasoning_content": choice.reasoning or None,
                "tool_calls": [_whole_call(call) for call in choice.tool_calls] or None,
            },
            "logprobs": self._logprobs(choice.logprobs, None) if self._has_logprobs else None,
            "finish_reason": choice.finish_reason,
            "matched_stop": choice.matched_stop,
        }

    def _logprobs(
        self, logprobs: Sequence[dict[str, Any]], delta: Delta | None
    ) -> dict[str, Any] | None:
        if delta is not None and not logprobs:
            return None
        return {"content": list(logprobs), "refusal": None}


class CompletionAnswer(OpenAIAnswer):
    """Answers of `/v1/completions`."""

    id_prefix = "cmpl-"
    whole_object = "text_completion"
    chunk_object = "text_completion"

    def __init__(self, **head: Any) -> None:
        super().__init__(**head)
        # Characters of the tokens sent so far, per choice: `text_offset` goes on across chunks.
        self._num_chars: dict[int, int] = {}

    def _contents(self, delta: Delta) -> Sequence[str]:
        return (dumps(delta.text),)

    def _content_choice(self, index: int, content: str, logprobs: str) -> str:
        return (
            f'{{"index":{index},"text":{content},"logprobs":{logprobs},'
            '"finish_reason":null,"matched_stop":null}'
        )

    def _end_choice(self, index: int, ending: str) -> str:
        return f'{{"index":{index},"text":"",{ending}}}'

    def _whole_choice(self, index: int, choice: Choice) -> dict[str, Any]:
        return {
            "index": index,
            "text": choice.text,
            "logprobs": self._logprobs(choice.logprobs, None) if self._has_logprobs else None,
            "finish_reason": choice.finish_reason,
            "matched_stop": choice.matched_stop,
        }

    def _logprobs(
        self, logprobs: Sequence[dict[str, Any]], delta: Delta | None
    ) -> dict[str, Any] | None:
        if delta is not None and not logprobs:
            return None
        offset = self._num_chars.get(delta.index, 0) if delta is not None else 0
        offsets = []
        for item in logprobs:
            offsets.append(offset)
            offset += len(item["token"])
        if delta is not None:
            self._num_chars[delta.index] = offset
        return {
            "tokens": [item["token"] for item in logprobs],
            "token_logprobs": [item["logprob"] for item in logprobs],
            # OpenAI's classic form always has the chosen token, so up to logprobs + 1 members.
            "top_logprobs": [
                {top["token"]: top["logprob"] for top in (*item["top_logprobs"], item)}
                for item in logprobs
            ],
            "text_offset": offsets,
        }


def _call_chunk(call: ToolCallDelta) -> str:
    if call.id is None:
        return f'{{"index":{call.index},"function":{{"arguments":{dumps(call.arguments)}}}}}'
    return dumps({"index": call.index} | _call_json(call.id, call.name, call.arguments))


def _whole_call(call: dict[str, str]) -> dict[str, Any]:
    return _call_json(call["id"], call["name"], call["arguments"])


def _call_json(call_id: str, name: str | None, arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}


def usage_json(usage: Usage) -> dict[str, Any]:
    """OpenAI's usage object, with SGLang's `reasoning_tokens` beside it."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "completion_tokens": usage.completion_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "audio_tokens": 0,
            "image_tokens": usage.image_tokens,
            "text_tokens": usage.prompt_tokens - usage.image_tokens,
        },
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
        "reasoning_tokens": usage.reasoning_tokens,
    }
