"""Answers about tokens, models and the server itself."""

from __future__ import annotations

from typing import Literal

from openai_frontend.answer_models.base import AnswerFields


class Tokens(AnswerFields):
    """The answer of `/tokenize`."""

    count: int
    max_model_len: int | None
    tokens: list[int]
    token_strs: None


class DetokenizedText(AnswerFields):
    """The answer of `/detokenize`."""

    prompt: str


class ModelCard(AnswerFields):
    """A model that can be asked for."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: None
    max_model_len: int | None
    max_images: int | None
    calls_tools: bool
    reasons: bool
    takes_videos: bool


class ModelList(AnswerFields):
    """The answer of `/v1/models`."""

    object: Literal["list"]
    data: list[ModelCard]


class HealthStatus(AnswerFields):
    """The answer of a health check that passes."""

    status: Literal["live", "ready", "generating"]


class VersionAnswer(AnswerFields):
    """The answer of `/version`."""

    version: str
