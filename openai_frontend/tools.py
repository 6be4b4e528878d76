"""From the fields about tools to those that the model is told about, and to the decoder's `grammar`.

A call always matches its function's schema, `strict` or not: the grammar lets the model write nothing else
once a call has begun.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openai_frontend.protocol.requests import ChatCompletionRequest
from openai_frontend.protocol.tools import NamedTool, Tool
from python_backend.errors import InvalidRequestError
from python_backend.tool_calls import ToolFormat

_NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}


def callable_tools(request: ChatCompletionRequest) -> list[Tool]:
    """The tools that the model is told about; none of them if `tool_choice` forbids to call any.

    Raises:
        InvalidRequestError: the fields about tools contradict each other, or a schema is not an object's.
    """
    if not request.tools:
        for field in ("tool_choice", "parallel_tool_calls"):
            if getattr(request, field) is not None:
                raise InvalidRequestError(
                    f"'{field}' is only allowed when 'tools' are specified.", param=field
                )
        return []
    names = set()
    for i, tool in enumerate(request.tools):
        if tool.function.name in names:
            raise InvalidRequestError(
                f"There are two tools of the name '{tool.function.name}'; give them different names.",
                param=f"tools[{i}].function.name",
            )
        names.add(tool.function.name)
        _check_parameters(tool, f"tools[{i}].function.parameters")
    if isinstance(request.tool_choice, NamedTool):
        name = request.tool_choice.function.name
        if name not in names:
            raise InvalidRequestError(
                f"Tool choice '{name}' not found in the 'tools' parameter.",
                param="tool_choice.function.name",
            )
    return [] if request.tool_choice == "none" else request.tools


def _check_parameters(tool: Tool, param: str) -> None:
    schema = tool.function.parameters
    if schema and schema.get("type") != "object":
        raise InvalidRequestError(
            f"Invalid schema for function '{tool.function.name}': it must have the type \"object\".",
            code="invalid_function_parameters",
            param=param,
        )


def tool_grammar(
    request: ChatCompletionRequest,
    tools: Sequence[Tool],
    form: ToolFormat,
    grammar: tuple[str, dict[str, Any]] | None,
) -> tuple[str, dict[str, Any]]:
    """The field that says which calls the answer may have, and that as SAMPLING JSON has it.

    Args:
        request: asks for the answer.
        tools: those the model is told about.
        form: how the model writes calls.
        grammar: what the answer must match if it calls nothing, and the field that says so.

    Raises:
        InvalidRequestError: calls cannot be combined with `grammar`.
    """
    choice = request.tool_choice
    if isinstance(choice, NamedTool):
        tools = [tool for tool in tools if tool.function.name == choice.function.name]
    calls: dict[str, Any] = {
        "format": form.name,
        "functions": [
            {
                "name": tool.function.name,
                "parameters": tool.function.parameters or _NO_PARAMETERS,
            }
            for tool in tools
        ],
        "is_required": choice is not None and choice != "auto",
        "is_parallel": request.parallel_tool_calls is not False
        and not isinstance(choice, NamedTool),
    }
    if grammar is not None:
        field, content = grammar
        if "json_schema" not in content:
            raise InvalidRequestError(
                f"'{field}' cannot be combined with 'tools'; of an answer beside calls only a JSON schema "
                "can be enforced.",
                param=field,
            )
        calls["content"] = content["json_schema"]
    return "tools", {"tool_calls": calls}
