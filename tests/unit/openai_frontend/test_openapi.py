"""`/openapi.json` is true: requests made up from it find nothing that it does not say."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Any

import jsonschema_rs
import pytest
import schemathesis
from fake_backend import MODEL, FakeBackend, text_deltas
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, settings
from pydantic import BaseModel
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from openai_frontend.answer_models import completions as answers
from openai_frontend.app import create_app
from openai_frontend.backend import Delta, ModelInfo
from openai_frontend.record import ENDPOINTS
from openai_frontend.settings import Settings
from python_backend.errors import OverloadedError
from python_backend.tool_calls import FORMATS

KEY = "sk-alice-0123456789abcdef"
NO_MODEL = "no such model"
HERMES = FORMATS["hermes"]
CAPABLE = replace(MODEL, tool_format=HERMES, reasons=True)
TOOL = {"type": "function", "function": {"name": "f"}}
LOGPROB: dict[str, Any] = {"token": "a", "bytes": [97], "logprob": -0.5}


class TalkativeBackend(FakeBackend):
    """Answers whatever is asked, under every name but one, with all that was asked for."""

    async def generate(
        self,
        model: str,
        request_id: str,
        prompt: dict[str, Any],
        images: Sequence[bytes],
        sampling: dict[str, Any],
        traceparent: str | None = None,
    ) -> AsyncGenerator[Delta, None]:
        for index in range(sampling.get("n", 1)):
            text = HERMES.call("f", {"a b": "c d"}) if "tools" in prompt else "a b"
            first, *others = text_deltas(text, index=index)
            if sampling.get("separate_reasoning", True):
                first = replace(first, reasoning="Hm.")
            if "logprobs" in sampling:
                top = [LOGPROB] * sampling["logprobs"]
                first = replace(first, logprobs=[LOGPROB | {"top_logprobs": top}])
            if index == 0 and "return_token_ids" in sampling:
                first = replace(first, prompt_token_ids=[1, 2])
            if index == 0 and "prompt_logprobs" in sampling:
                scored = {"logprob": -0.5, "rank": 1, "decoded_token": "a"}
                unscored = {"logprob": None, "rank": None, "decoded_token": "a"}
                first = replace(first, prompt_logprobs=[{"1": unscored}, {"2": scored}])
            for delta in (first, *others):
                yield delta

    async def find_model(self, name: str) -> ModelInfo | None:
        return None if name == NO_MODEL else CAPABLE


# The one allowed host is no host, so that nothing is looked up.
SETTINGS = Settings(api_keys=(KEY,), allowed_media_domains=("-",))
APP = create_app(SETTINGS, TalkativeBackend())
DOCUMENT = APP.state.openapi
schema = schemathesis.openapi.from_asgi(
    "/openapi.json",
    APP,
    headers={"authorization": f"Bearer {KEY}"},
    config=schemathesis.Config.from_dict({"generation": {"deterministic": True}}),
)


@schema.parametrize()
@settings(
    max_examples=25,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_generated_requests_get_what_is_documented(case: schemathesis.Case) -> None:
    case.call_and_validate(
        headers={"authorization": f"Bearer {KEY}"},
        checks=[
            not_a_server_error,
            checks.status_code_conformance,
            checks.content_type_conformance,
            checks.response_schema_conformance,
            checks.response_headers_conformance,
            checks.negative_data_rejection,
            checks.unsupported_method,
        ],
    )


def test_document_has_every_endpoint() -> None:
    assert {*DOCUMENT["paths"]} == {*ENDPOINTS, "/", "/page/{name}"}


def test_document_says_what_needs_a_key() -> None:
    secured = {
        path
        for path, operations in DOCUMENT["paths"].items()
        if any("security" in operation for operation in operations.values())
    }
    assert {*DOCUMENT["paths"]} - secured == {"/health/live", "/health/ready", "/", "/page/{name}"}
    document = create_app(Settings(), FakeBackend()).state.openapi
    assert '"security"' not in json.dumps(document)
    assert '"401"' not in json.dumps(document)


def error_schema(path: str, status: int) -> Any:
    response = DOCUMENT["paths"][path]["post"]["responses"][str(status)]
    inner = response["content"]["application/json"]["schema"]
    return jsonschema_rs.validator_for(inner | {"components": DOCUMENT["components"]})


@pytest.mark.parametrize(
    ("error", "status"), [(OverloadedError("full"), 429), (RuntimeError("secret"), 500)]
)
def test_errors_have_the_documented_codes(error: Exception, status: int) -> None:
    client = TestClient(create_app(Settings(), FakeBackend([error])), raise_server_exceptions=False)
    response = client.post("/v1/completions", json={"model": MODEL.id, "prompt": "hi"})
    assert response.status_code == status
    validator = error_schema("/v1/completions", status)
    validator.validate(response.json())
    wrong = response.json()
    wrong["error"]["code"] = "something_else"
    assert not validator.is_valid(wrong)


@pytest.mark.parametrize(
    ("path", "prompt", "chunk"),
    [
        ("chat/completions", {"messages": [{"role": "user", "content": "hi"}]}, "Chat"),
        ("completions", {"prompt": "hi"}, ""),
    ],
)
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
        {"return_token_ids": True, "n": 2},
    ],
)
def test_events_of_a_stream_are_the_documented_chunks(path, prompt, chunk, fields) -> None:
    check_events(path, getattr(answers, f"{chunk}CompletionChunk"), prompt | fields)


def test_events_with_calls_are_the_documented_chunks() -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "tools": [TOOL], "n": 2}
    check_events("chat/completions", answers.ChatCompletionChunk, body)


def check_events(path: str, model: type[BaseModel], fields: dict[str, Any]) -> None:
    client = TestClient(create_app(Settings(), TalkativeBackend()))
    response = client.post(f"/v1/{path}", json={"model": MODEL.id, "stream": True, **fields})
    *events, done, end = response.text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    assert len(events) >= 3
    for event in events:
        model.model_validate_json(event.removeprefix("data: "))
