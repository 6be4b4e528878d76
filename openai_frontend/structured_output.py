"""From the fields that ask for structured output to the decoder's `grammar`."""

from __future__ import annotations

from typing import Any

from openai_frontend.protocol.requests import GenerationFields
from python_backend.errors import InvalidRequestError


def grammar_of(request: GenerationFields) -> tuple[str, dict[str, Any]] | None:
    """The field that says what an answer must match, and that as SAMPLING JSON has it.

    Raises:
        InvalidRequestError: there are several such fields.
    """
    asked = [*_response_format(request), *_structured_outputs(request)]
    if request.regex is not None:
        asked.append(("regex", {"regex": request.regex}))
    if request.ebnf is not None:
        asked.append(("ebnf", {"grammar": request.ebnf}))
    if len(asked) > 1:
        raise InvalidRequestError(
            f"'{asked[0][0]}' and '{asked[1][0]}' both say what the answer must match; send only one.",
            param=asked[1][0],
        )
    return asked[0] if asked else None


def _response_format(request: GenerationFields) -> list[tuple[str, dict[str, Any]]]:
    form = request.response_format
    if form is None or form.type == "text":
        return []
    if form.type == "json_object":
        return [("response_format", {"json_schema": form.schema_ or {"type": "object"}})]
    if form.json_schema is None:
        raise InvalidRequestError(
            "Missing required parameter: 'response_format.json_schema'.",
            code="missing_required_parameter",
            param="response_format.json_schema",
        )
    return [("response_format", {"json_schema": form.json_schema.schema_})]


def _structured_outputs(request: GenerationFields) -> list[tuple[str, dict[str, Any]]]:
    options = request.structured_outputs
    if options is None:
        return []
    grammars: dict[str, dict[str, Any] | None] = {
        "json": None if options.json_ is None else {"json_schema": options.json_},
        "json_object": {"json_schema": {"type": "object"}} if options.json_object else None,
        "regex": None if options.regex is None else {"regex": options.regex},
        "choice": None if options.choice is None else {"choice": options.choice},
        "grammar": None if options.grammar is None else {"grammar": options.grammar},
    }
    return [
        (f"structured_outputs.{name}", grammar)
        for name, grammar in grammars.items()
        if grammar is not None
    ]
