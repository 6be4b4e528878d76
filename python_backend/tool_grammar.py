"""The grammar of answers with tool calls: free text until a call begins, then nothing but valid calls."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from python_backend.errors import InvalidRequestError
from python_backend.tool_calls import FORMATS, ToolFormat


def to_lark(
    spec: Mapping[str, Any], token_ids: Mapping[str, int], json_style: Mapping[str, Any]
) -> str:
    """The grammar in llguidance's Lark.

    Args:
        spec: as `tool_calls.check_tool_calls` describes it.
        token_ids: tokens besides the vocabulary; where a format's text has one, that token is meant.
        json_style: `x-guidance` of JSON schemas.

    Raises:
        InvalidRequestError: the format cannot tell a call from an answer of the schema `content`.
    """
    form = FORMATS[spec["format"]]

    def schema(value: Mapping[str, Any]) -> str:
        return f"%json {json.dumps({**value, 'x-guidance': json_style})}"

    def text(value: str) -> str:
        return _literal(value, token_ids)

    functions, arguments = [], []
    for i, function in enumerate(spec["functions"]):
        head = json.dumps(function["name"] + form.middle)
        functions.append(f"{head} arguments_{i}")
        arguments.append(f"arguments_{i}: {schema(function['parameters'])}")
    calls = "call"
    if spec["is_parallel"] and form.separator is not None:
        calls += f" ({text(form.separator)} call)*"
    rules = [
        f"calls: {calls}",
        f"call: {text(form.opening)} function {text(form.closing)}",
        f"function: {' | '.join(functions)}",
        *arguments,
    ]
    if spec["is_required"]:
        rules.append("start: calls")
    elif "content" in spec:
        if not form.trigger_is_token:
            raise InvalidRequestError(
                "this model writes a call as JSON, which cannot be told from an answer in JSON: send "
                "'response_format' and 'tools' in separate requests",
                param="grammar",
            )
        rules += ["start: content | calls", f"content: {schema(spec['content'])}"]
    else:
        rules += [
            f"start: TEXT | {'TEXT ' if form.trigger_is_token else ''}calls",
            _free_text(form),
        ]
    return "\n".join(rules)


def _free_text(form: ToolFormat) -> str:
    """Text in which no call begins, also not one that is spelled out where a token is meant."""
    before = "(?s:.*)" if form.trigger_is_token else ""
    trigger = re.escape(form.trigger).replace("/", r"\/")
    return f"TEXT: /(?s:.*)/ & ~/{before}{trigger}(?s:.*)/"


def _literal(text: str, token_ids: Mapping[str, int]) -> str:
    """`text` as a sequence of strings, which are written like JSON's, and tokens."""
    names = "|".join(re.escape(name) for name in sorted(token_ids, key=len, reverse=True))
    parts = re.split(f"({names})", text) if names else [text]
    return " ".join(
        f"<[{token_ids[part]}]>" if part in token_ids else json.dumps(part)
        for part in parts
        if part
    )
