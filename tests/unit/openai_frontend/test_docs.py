"""The page for users names everything that exists."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from openai_frontend.errors import INVALID_REQUEST_CODES
from openai_frontend.protocol.requests import ChatCompletionRequest, CompletionRequest
from openai_frontend.record import ENDPOINTS
from openai_frontend.responses_api import ResponsesRequest
from openai_frontend.settings import Settings
from openai_frontend.unsupported import (
    UNSUPPORTED_CHAT,
    UNSUPPORTED_COMPLETION,
    UNSUPPORTED_MESSAGE,
    UNSUPPORTED_RESPONSES,
)

ROOT = Path(__file__).parents[3]
TESTS = ROOT / "tests"
PAGE = (ROOT / "docs" / "openai-api.md").read_text(encoding="utf-8")
REQUESTS = (ChatCompletionRequest, CompletionRequest, ResponsesRequest)
FIELDS = {field for request in REQUESTS for field in request.model_fields}
UNSUPPORTED = {
    *(*UNSUPPORTED_CHAT, *UNSUPPORTED_COMPLETION, *UNSUPPORTED_MESSAGE),
    *UNSUPPORTED_RESPONSES,
}


@pytest.mark.parametrize("name", sorted(FIELDS | UNSUPPORTED))
def test_every_field_is_documented(name) -> None:
    assert re.search(rf"`{name}[`.]", PAGE)


@pytest.mark.parametrize("name", [setting.name for setting in dataclasses.fields(Settings)])
def test_every_flag_is_documented(name) -> None:
    assert f"`--{name.replace('_', '-')}" in PAGE or f"`TRITON_VLM_{name.upper()}`" in PAGE


@pytest.mark.parametrize("endpoint", sorted(ENDPOINTS))
def test_every_endpoint_is_documented(endpoint) -> None:
    assert f"{endpoint.replace('{model}', '{id}')}`" in PAGE


@pytest.mark.parametrize("code", INVALID_REQUEST_CODES)
def test_every_code_is_documented(code) -> None:
    assert f"`{code}`" in PAGE


def test_every_code_of_an_invalid_request_is_listed() -> None:
    served = ("openai_frontend", "python_backend")
    paths = [path for package in served for path in (ROOT / package).rglob("*.py")]
    used = {
        code
        for path in paths
        for code in re.findall(r'\bcode="(\w+)"', path.read_text(encoding="utf-8"))
    }
    assert used
    assert used <= set(INVALID_REQUEST_CODES)


def test_every_test_of_the_comparison_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    sources = (path.read_text(encoding="utf-8") for path in TESTS.rglob("test_*.py"))
    existing = {name for source in sources for name in re.findall(r"def (test_\w+)\(", source)}
    assert named
    assert named <= existing
