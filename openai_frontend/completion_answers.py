"""The JSON of plain completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openai_frontend.answers import Choice
from openai_frontend.backend import Delta
from openai_frontend.openai_answers import OpenAIAnswer
from openai_frontend.sse import dumps


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

    def _logprobs(self, logprobs: Sequence[dict[str, Any]], delta: Delta | None) -> dict[str, Any]:
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


def _classic_item(entry: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A token of the prompt as one of the answer."""
    own, *others = (
        {"token": token["decoded_token"], "logprob": token["logprob"]} for token in entry.values()
    )
    return own | {"top_logprobs": others}
