"""The JSON of chat completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openai_frontend.answers import Choice
from openai_frontend.backend import Delta, ToolCallDelta
from openai_frontend.openai_answers import OpenAIAnswer
from openai_frontend.sse import dumps


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

    def _logprobs(self, logprobs: Sequence[dict[str, Any]], delta: Delta | None) -> dict[str, Any]:
        return {"content": list(logprobs), "refusal": None}


def _call_chunk(call: ToolCallDelta) -> str:
    if call.id is None:
        return f'{{"index":{call.index},"function":{{"arguments":{dumps(call.arguments)}}}}}'
    return dumps({"index": call.index} | _call_json(call.id, call.name, call.arguments))


def _whole_call(call: dict[str, str]) -> dict[str, Any]:
    return _call_json(call["id"], call["name"], call["arguments"])


def _call_json(call_id: str, name: str | None, arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}
