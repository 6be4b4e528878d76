"""From the bytes of a request body to a checked model, or to an error that names the field.

pydantic says what is wrong; this module says it in OpenAI's words: `param` is the path of the field
as the client wrote it, `code` one of OpenAI's strings, the message one sentence that says what to
change.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypeVar

import pydantic
import pydantic_core

from python_backend.errors import InvalidRequestError

Model = TypeVar("Model", bound=pydantic.BaseModel)

_TYPE_NAMES = {
    "string_type": "a string",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "a boolean",
    "list_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}


def parse_body(body: bytes | bytearray, model: type[Model]) -> Model:
    """Check a request body against the fields of `model`.

    Raises:
        InvalidRequestError: names the first field at fault.
    """
    try:
        # Rejects what json.loads takes: NaN, invalid UTF-8, lone surrogates, nesting over some 200 levels.
        value = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidRequestError(
            f"We could not parse the JSON body of your request: {error}.", code="invalid_json"
        ) from error
    if not isinstance(value, dict):
        raise InvalidRequestError("The request body must be a JSON object.", code="invalid_type")
    return _validated(value, model)


def is_finite(value: object) -> bool:
    """Whether no number of a JSON value is infinite, as 1e400 is when it is read."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


class NoQuery(pydantic.BaseModel):
    """A query without parameters."""

    model_config = pydantic.ConfigDict(extra="forbid")


def parse_query(parameters: Sequence[tuple[str, str]], model: type[Model]) -> Model:
    """Check the parameters of a URL against the fields of `model`.

    Raises:
        InvalidRequestError: names the first parameter at fault.
    """
    value = dict(parameters)
    if len(value) < len(parameters):
        raise InvalidRequestError("Each parameter may be in the URL once.")
    return _validated(value, model)


def _validated(value: dict[str, Any], model: type[Model]) -> Model:
    try:
        return model.model_validate(value)
    except pydantic.ValidationError as error:
        raise _to_request_error(error.errors(include_url=False)[0]) from error


def _to_request_error(detail: pydantic_core.ErrorDetails) -> InvalidRequestError:
    param = _path(detail["loc"])
    kind = detail["type"]
    if kind == "missing":
        return InvalidRequestError(
            f"Missing required parameter: '{param}'.",
            code="missing_required_parameter",
            param=param,
        )
    if kind == "extra_forbidden":
        return InvalidRequestError(
            f"Unknown parameter: '{param}'; remove it from the request.",
            code="unknown_parameter",
            param=param,
        )
    if kind in _TYPE_NAMES:
        return InvalidRequestError(
            f"Invalid type for '{param}': expected {_TYPE_NAMES[kind]}, "
            f"but got {_json_type(detail['input'])} instead.",
            code="invalid_type",
            param=param,
        )
    if kind == "union_tag":
        param += ".type"
    message = detail["msg"].replace(" after validation", "")
    return InvalidRequestError(
        f"Invalid value for '{param}': {message[:1].lower()}{message[1:]}.",
        code="invalid_type" if kind == "invalid_type" else "invalid_value",
        param=param,
    )


def _path(location: tuple[int | str, ...]) -> str:
    """`("messages", 0, "content", "<parts>", 1)` as `messages[0].content[1]`."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not part.startswith(("<", "[")):  # tag of a union, or the word that a key is meant
            path += f".{part}" if path else part
    return path


def _json_type(value: object) -> str:
    names = {bool: "a boolean", int: "an integer", float: "a number", str: "a string"}
    names |= {list: "an array", dict: "an object", type(None): "null"}
    return names.get(type(value), "another type")
