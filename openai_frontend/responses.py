"""The JSON of answers, whole and in chunks.

On the token path a chunk is a constant prefix, the encoded text and a constant suffix: building and
serializing a model for every token costs more than everything else the proxy does for it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
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


class OpenAIAnswer(Answer):
    """What the answers of OpenAI's two endpoints share.

    Args:
        answer_id: hexadecimal digits of the id.
        created: Unix time.
        model: name as the client wrote it.
        fingerprint: of the served configuration.
        options: what the client wants to be told.
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
        options: AnswerOptions,
    ) -> None:
        self._head: dict[str, Any] = {
            "id": self.id_prefix + answer_id,
            "object": self.whole_object,
            "created": created,
            "model": model,
            "system_fingerprint": fingerprint,
        }
        self._options = options
        self._chunk_prefix = dumps(self._head | {"object": self.chunk_object})[:-1] + ',"choices":['
        self._chunk_usage = ',"usage":null' if options.include_usage else ""
        self._usage: Usage | None = None
        self._num_tokens = 0

    def chunks(self, delta: Delta, *, is_first: bool) -> bytes:
        """Events for one delta."""
        self._usage = self._usage or delta.usage
        data = self._start_event(delta) if is_first else b""
        self._num_tokens += len(delta.token_ids)
        options = self._options
        logprobs = self._logprobs(delta.logprobs or (), delta) if options.has_logprobs else None
        has_token_ids = options.has_token_ids and delta.token_ids
        if delta.text or logprobs or has_token_ids or delta.reasoning or delta.tool_calls:
            encoded = "null" if logprobs is None else dumps(logprobs)
            if has_token_ids:
                encoded += f',"token_ids":{dumps(list(delta.token_ids))}'
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
        if not self._options.include_usage:
            return DONE
        return event(f'{self._chunk_prefix}],"usage":{dumps(usage_json(usage))}}}') + DONE

    def failure(self, error: BaseException) -> bytes:
        """The client's library raises when it reads this event."""
        return event(dumps(error_body(error)))

    def whole(self, choices: Sequence[Choice], usage: Usage) -> bytes:
        """The choices in one object."""
        prompt = choices[0]
        kept = best_choices(choices, self._options.num_choices)
        body = self._head | self._whole_members(prompt)
        body |= {
            "choices": [self._whole_choice(i, choice, prompt) for i, choice in enumerate(kept)],
            "usage": usage_json(usage),
            "metadata": {"weight_version": "default"},
        }
        return dumps(body).encode("utf-8", "replace")

    def _event(self, choice: str, members: str = "") -> bytes:
        """A chunk of one choice; `members` follow the list of choices, each after a comma."""
        usage = self._chunk_usage
        if self._options.has_running_usage and self._usage is not None:
            so_far = replace(self._usage, completion_tokens=self._num_tokens)
            usage = f',"usage":{dumps(usage_json(so_far))}'
        return event(f"{self._chunk_prefix}{choice}]{members}{usage}}}")

    def _prompt_token_ids(self, delta: Delta) -> str:
        """The member of a choice's first chunk about the prompt, after a comma; or nothing."""
        if not self._options.has_token_ids or delta.prompt_token_ids is None:
            return ""
        return f',"prompt_token_ids":{dumps(list(delta.prompt_token_ids))}'

    def _token_ids(self, choice: Choice) -> dict[str, Any]:
        return {"token_ids": choice.token_ids} if self._options.has_token_ids else {}

    def _prompt_members(self, prompt: Choice) -> dict[str, Any]:
        """What an answer tells of the prompt, which came with its first choice."""
        members: dict[str, Any] = {}
        if self._options.has_token_ids:
            members["prompt_token_ids"] = list(prompt.prompt_token_ids)
        if self._options.has_prompt_logprobs:
            members["prompt_logprobs"] = [
                None if _own(entry)["logprob"] is None else entry
                for entry in prompt.prompt_logprobs
            ]
        return members

    def _whole_members(self, prompt: Choice) -> dict[str, Any]:
        """What a whole answer has beside its choices."""
        return {}

    def _start_event(self, delta: Delta) -> bytes:
        """What comes before the first text of a choice."""
        return b""

    @abstractmethod
    def _contents(self, delta: Delta) -> Sequence[str]:
        """What `delta` brings, as JSON of one or more chunks."""

    @abstractmethod
    def _content_choice(self, index: int, content: str, logprobs: str) -> str:
        """JSON of a choice that brings one of `_contents`; `logprobs` is JSON, too.

        Other members may follow `logprobs`, after a comma.
        """

    @abstractmethod
    def _end_choice(self, index: int, ending: str) -> str:
        """JSON of a choice that ends; `ending` holds the last members of the object."""

    @abstractmethod
    def _whole_choice(self, index: int, choice: Choice, prompt: Choice) -> dict[str, Any]:
        """A choice of an answer that is not streamed; `prompt` is the one that tells of the prompt."""

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

    def _whole_members(self, prompt: Choice) -> dict[str, Any]:
        return self._prompt_members(prompt)

    def _start_event(self, delta: Delta) -> bytes:
        content = "null" if self._options.may_call else '""'
        return self._event(
            f'{{"index":{delta.index},"delta":{{"role":"assistant","content":{content},"refusal":null}},'
            '"logprobs":null,"finish_reason":null,"matched_stop":null}',
            self._prompt_token_ids(delta),
        )

    def _contents(self, delta: Delta) -> Sequence[str]:
        if not (delta.reasoning or delta.tool_calls):
            # Text that is held back, because it may begin a call, leaves log probabilities alone.
            is_nothing = self._options.may_call and not delta.text
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

    def _whole_choice(self, index: int, choice: Choice, prompt: Choice) -> dict[str, Any]:
        has_logprobs = self._options.has_logprobs
        return {
            "index": index,
            "message": {
                "role": "assistant",
                "content": choice.text if choice.text or not choice.tool_calls else None,
                "refusal": None,
                "reasoning_content": choice.reasoning or None,
                "tool_calls": [_whole_call(call) for call in choice.tool_calls] or None,
            },
            "logprobs": self._logprobs(choice.logprobs, None) if has_logprobs else None,
            "finish_reason": choice.finish_reason,
            "matched_stop": choice.matched_stop,
            **self._token_ids(choice),
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

    def _start_event(self, delta: Delta) -> bytes:
        members = self._prompt_token_ids(delta)
        if not self._options.echo and not members:
            return b""
        text = dumps(self._options.echo or "")
        return self._event(self._content_choice(delta.index, text, f"null{members}"))

    def _contents(self, delta: Delta) -> Sequence[str]:
        return (dumps(delta.text),)

    def _content_choice(self, index: int, content: str, logprobs: str) -> str:
        return (
            f'{{"index":{index},"text":{content},"logprobs":{logprobs},'
            '"finish_reason":null,"matched_stop":null}'
        )

    def _end_choice(self, index: int, ending: str) -> str:
        return f'{{"index":{index},"text":"",{ending}}}'

    def _whole_choice(self, index: int, choice: Choice, prompt: Choice) -> dict[str, Any]:
        text, logprobs = choice.text, choice.logprobs
        if self._options.echo is not None:
            text = self._options.echo + text
            logprobs = [*map(_classic_item, prompt.prompt_logprobs), *logprobs]
        return {
            "index": index,
            "text": text,
            "logprobs": self._logprobs(logprobs, None) if self._options.has_logprobs else None,
            "finish_reason": choice.finish_reason,
            "matched_stop": choice.matched_stop,
            **self._token_ids(choice),
            **self._prompt_members(prompt),
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
                None
                if item["logprob"] is None
                else {top["token"]: top["logprob"] for top in (*item["top_logprobs"], item)}
                for item in logprobs
            ],
            "text_offset": offsets,
        }


def _own(entry: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What `Delta.prompt_logprobs` says of the prompt's own token."""
    return next(iter(entry.values()))


def _classic_item(entry: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A token of the prompt as one of the answer."""
    own, *others = (
        {"token": token["decoded_token"], "logprob": token["logprob"]} for token in entry.values()
    )
    return own | {"top_logprobs": others}


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
            "video_tokens": usage.video_tokens,
            "text_tokens": usage.prompt_tokens - usage.image_tokens - usage.video_tokens,
        },
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
        "reasoning_tokens": usage.reasoning_tokens,
    }
