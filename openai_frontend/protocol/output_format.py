"""What an answer must look like."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from openai_frontend.protocol.fields import Fields, JsonSchema


class NamedSchema(Fields):
    """A JSON schema with what OpenAI wants to know besides; `strict` is what happens anyway."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str | None = None
    schema_: JsonSchema = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Fields):
    """What the answer must be; `schema` beside `json_object` is llama.cpp's way to write it."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None
    schema_: JsonSchema | None = Field(None, alias="schema")


class StructuredOutputs(Fields):
    """vLLM's way to say what the answer must be; one of its fields."""

    json_: JsonSchema | None = Field(None, alias="json")
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
