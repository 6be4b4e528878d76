"""Functions that the model may call."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Tag

from openai_frontend.protocol.fields import Fields, JsonSchema
from openai_frontend.protocol.messages import FunctionName


class Function(Fields):
    """A function that the model may call; `strict` is what happens anyway."""

    name: FunctionName
    description: str | None = None
    parameters: JsonSchema | None = None
    strict: bool | None = None


class Tool(Fields):
    """A tool that the model may use; there are functions only."""

    type: Literal["function"]
    function: Function


class NamedFunction(Fields):
    """A function by its name."""

    name: FunctionName


class NamedTool(Fields):
    """A tool by its name."""

    type: Literal["function"]
    function: NamedFunction


def _tool_choice_kind(value: Any) -> str | None:
    return "<text>" if isinstance(value, str) else "<tool>" if isinstance(value, dict) else None


AnyToolChoice = Annotated[Literal["none", "auto", "required"], Tag("<text>")]
WORD_OR_TOOL = Discriminator(
    _tool_choice_kind,
    custom_error_type="invalid_type",
    custom_error_message="It must be 'none', 'auto', 'required' or a tool",
)
"""Tells an `AnyToolChoice` from a tool, `<tool>`."""
ToolChoice = Annotated[AnyToolChoice | Annotated[NamedTool, Tag("<tool>")], WORD_OR_TOOL]
