"""What all answers have in common, and OpenAI's errors."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class AnswerFields(BaseModel):
    """The fields of an object in an answer, and no others."""

    model_config = ConfigDict(extra="forbid")


class ErrorObject(AnswerFields):
    """What is wrong and what to change."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(AnswerFields):
    """OpenAI's errors."""

    error: ErrorObject
