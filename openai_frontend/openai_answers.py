"""The JSON of answers, whole and in chunks.

On the token path a chunk is a constant prefix, the encoded text and a constant suffix: building and
serializing a model for every token costs more than everything else the proxy does for it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from openai_frontend.answers import Answer, AnswerOptions, Choice, best_choices
from openai_frontend.backend import Delta, Usage
from openai_frontend.errors import error_body
from openai_frontend.sse import DONE, dumps, event


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
        logprobs = None
        if options.has_logprobs and delta.logprobs:
            logprobs = self._logprobs(delta.logprobs, delta)
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
    def _logprobs(self, logprobs: Sequence[dict[str, Any]], delta: Delta | None) -> dict[str, Any]:
        """The `logprobs` object of a chunk (`delta` given, which has some) or of a whole choice."""


def _own(entry: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What `Delta.prompt_logprobs` says of the prompt's own token."""
    return next(iter(entry.values()))


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
