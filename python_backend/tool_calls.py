"""How models write tool calls, and what a request allows: for the grammar here and the parser in the proxy.

A call is fixed text around a name and a JSON object. Which text follows from the checkpoint's chat template.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from python_backend.errors import InvalidRequestError

MAX_FUNCTIONS: Final = 128
"""Functions of one request; the limit of the OpenAI API."""
FUNCTION_NAME: Final = r"^[a-zA-Z0-9_-]{1,64}$"
"""What the OpenAI API allows; nothing in it needs an escape in JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """How a model writes a call: `opening`, the name, `middle`, the arguments as JSON, `closing`.

    Attributes:
        name: of the format.
        trigger: beginning of `opening` that is in no other text of an answer, or begins none.
        opening: see above.
        middle: see above.
        closing: see above.
        separator: between two calls; None where an answer is one call or none.
        trigger_is_token: whether the tokenizer has `trigger` as a token. Text may come before a call then;
            without, a call is the whole answer.
    """

    name: str
    trigger: str
    opening: str
    middle: str
    closing: str
    separator: str | None
    trigger_is_token: bool

    def call(self, name: str, arguments: str) -> str:
        """One call."""
        return f"{self.opening}{name}{self.middle}{arguments}{self.closing}"


FORMATS: Final[Mapping[str, ToolFormat]] = {
    form.name: form
    for form in (
        ToolFormat(  # Hermes 2 Pro, Qwen2.5, Qwen3
            name="hermes",
            trigger="<tool_call>",
            opening='<tool_call>\n{"name": "',
            middle='", "arguments": ',
            closing="}\n</tool_call>",
            separator="\n",
            trigger_is_token=True,
        ),
        ToolFormat(  # Llama 3.1, 3.2
            name="llama3_json",
            trigger='{"name": "',
            opening='{"name": "',
            middle='", "parameters": ',
            closing="}",
            separator=None,
            trigger_is_token=False,
        ),
    )
}

_PROBE: Final = "probe_function"
_PROBE_DESCRIPTION: Final = "A description to be found in the prompt."
_PROBE_TOOL: Final = {
    "type": "function",
    "function": {
        "name": _PROBE,
        "description": _PROBE_DESCRIPTION,
        "parameters": {"type": "object", "properties": {"probe_argument": {"type": "integer"}}},
    },
}
_PROBE_MESSAGES: Final = (
    {"role": "user", "content": "question"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "type": "function",
                "function": {"name": _PROBE, "arguments": {"probe_argument": 1}},
            }
        ],
    },
    {"role": "tool", "content": "result"},
)


def find_format(
    render: Callable[[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]], str],
    visible_tokens: Collection[str],
) -> ToolFormat | None:
    """The format in which a chat template writes calls; None if it takes no tools or writes them otherwise.

    Args:
        render: messages and tools to the prompt; may raise anything.
        visible_tokens: tokens besides the vocabulary that show in an answer's text.
    """
    try:
        prompt = render(_PROBE_MESSAGES, [_PROBE_TOOL])
    except Exception:  # templates raise whatever their author chose
        return None
    if _PROBE_DESCRIPTION not in prompt:
        return None
    for form in FORMATS.values():
        if form.call(_PROBE, '{"probe_argument": 1}') in prompt and (
            form.trigger in visible_tokens or not form.trigger_is_token
        ):
            return form
    return None


def check_tool_calls(param: str, value: object) -> None:
    """Refuse what is not the object that says which calls an answer may have.

    Its members: `format`, a name of `FORMATS`; `functions`, a list of `{"name", "parameters"}` with a JSON
    schema each; `is_required`, whether the answer is calls and nothing else; `is_parallel`, whether there
    may be several; and, if wanted, `content`, the JSON schema of an answer without calls.

    Raises:
        InvalidRequestError: as the name says.
    """

    def refuse(what: str) -> InvalidRequestError:
        return InvalidRequestError(f"{param}.{what}", param=f"{param}.{what.partition(' ')[0]}")

    if not isinstance(value, Mapping):
        raise InvalidRequestError(f"{param} must be an object", code="invalid_type", param=param)
    unknown = value.keys() - {"format", "functions", "is_required", "is_parallel", "content"}
    if unknown:
        raise refuse(f"{min(unknown)} is unknown; leave it out")
    if value.get("format") not in FORMATS:
        raise refuse(f"format must be one of {', '.join(FORMATS)}")
    functions = value.get("functions")
    if not isinstance(functions, list) or not 1 <= len(functions) <= MAX_FUNCTIONS:
        raise refuse(f"functions must be a list of 1 to {MAX_FUNCTIONS} functions")
    for i, function in enumerate(functions):
        is_whole = isinstance(function, Mapping) and function.keys() == {"name", "parameters"}
        if not is_whole or not isinstance(function["parameters"], Mapping):
            raise refuse(f"functions[{i}] must have a name and parameters, a JSON schema")
        if not isinstance(function["name"], str) or not re.fullmatch(
            FUNCTION_NAME, function["name"]
        ):
            raise refuse(f"functions[{i}].name must have 1 to 64 letters, digits, _ or -")
    for flag in ("is_required", "is_parallel"):
        if not isinstance(value.get(flag), bool):
            raise refuse(f"{flag} must be true or false")
    if not isinstance(value.get("content", {}), Mapping):
        raise refuse("content must be a JSON schema")
