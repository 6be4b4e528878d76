"""Every refusal: status, code, param, and one sentence that says what to change."""

from __future__ import annotations

import asyncio
import json
import re

import openai
import pytest
from fake_backend import MODEL, FakeBackend, text_deltas
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from openai_frontend.backend import Delta
from openai_frontend.errors import ServiceUnavailableError
from openai_frontend.protocol.requests import ChatCompletionRequest
from openai_frontend.settings import Settings
from openai_frontend.unsupported import UNSUPPORTED_CHAT
from python_backend.errors import (
    EngineError,
    InvalidImageError,
    InvalidRequestError,
    OverloadedError,
    PromptTooLongError,
    RequestCancelledError,
)

pytestmark = pytest.mark.anyio

USER = {"role": "user", "content": "hi"}


def content(*parts: object) -> dict[str, object]:
    return {"messages": [USER, {"role": "user", "content": list(parts)}]}


def image(**fields: object) -> dict[str, object]:
    return {"type": "image_url", "image_url": fields}


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": "hi"}, "messages", "invalid_type"),
        ({"messages": ["hi"]}, "messages[0]", "invalid_type"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role", "missing_required_parameter"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content", "invalid_type"),
        (
            {"messages": [{"role": "assistant", "content": None}]},
            "messages[0].content",
            "missing_required_parameter",
        ),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content", "invalid_value"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [USER | {"name": "x"}]}, "messages[0].name", "unsupported_parameter"),
        ({"messages": [USER | {"mood": "x"}]}, "messages[0].mood", "unknown_parameter"),
        (
            {"messages": [USER | {"tool_calls": [{}]}]},
            "messages[0].tool_calls[0].id",
            "missing_required_parameter",
        ),
        (content("hi"), "messages[1].content[0].type", "invalid_value"),
        (content({"type": "input_audio"}), "messages[1].content[0].type", "invalid_value"),
        (content({"text": "x"}), "messages[1].content[0].type", "invalid_value"),
        (content({"type": "text"}), "messages[1].content[0].text", "missing_required_parameter"),
        (
            content({"type": "text", "text": "x", "bold": True}),
            "messages[1].content[0].bold",
            "unknown_parameter",
        ),
        (
            content({"type": "image_url"}),
            "messages[1].content[0].image_url",
            "missing_required_parameter",
        ),
        (
            content({"type": "image_url", "image_url": "https://x"}),
            "messages[1].content[0].image_url",
            "invalid_type",
        ),
        (content(image()), "messages[1].content[0].image_url.url", "missing_required_parameter"),
        (content(image(url=5)), "messages[1].content[0].image_url.url", "invalid_type"),
        (content(image(url="")), "messages[1].content[0].image_url.url", "invalid_value"),
        (
            content(image(url="https://x", detail="medium")),
            "messages[1].content[0].image_url.detail",
            "invalid_value",
        ),
        (
            {"messages": [{"role": "system", "content": [image(url="https://x.test")]}]},
            "messages[0].content[0]",
            "invalid_value",
        ),
        ({"model": None}, "model", "invalid_type"),
        ({"model": ""}, "model", "invalid_value"),
        ({"temperature": 2.1}, "temperature", "invalid_value"),
        ({"temperature": "hot"}, "temperature", "invalid_type"),
        ({"temperature": True}, "temperature", "invalid_type"),
        ({"top_p": -0.1}, "top_p", "invalid_value"),
        ({"top_p": 1.1}, "top_p", "invalid_value"),
        ({"top_k": -2}, "top_k", "invalid_value"),
        ({"min_p": -0.1}, "min_p", "invalid_value"),
        ({"seed": 1.5}, "seed", "invalid_type"),
        ({"seed": 2**63}, "seed", "invalid_value"),
        ({"seed": 10**30}, "seed", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 9}, "n", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": 1.0}, "max_tokens", "invalid_type"),
        ({"max_completion_tokens": -1}, "max_completion_tokens", "invalid_value"),
        (
            {"max_tokens": 3, "max_completion_tokens": 4},
            "max_completion_tokens",
            "invalid_value",
        ),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens", "invalid_value"),
        ({"stop": ""}, "stop[0]", "invalid_value"),
        ({"stop": ["x"] * 17}, "stop", "invalid_value"),
        ({"stop": 5}, "stop", "invalid_type"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]", "invalid_value"),
        ({"presence_penalty": 2.5}, "presence_penalty", "invalid_value"),
        ({"frequency_penalty": -2.5}, "frequency_penalty", "invalid_value"),
        ({"repetition_penalty": 0}, "repetition_penalty", "invalid_value"),
        ({"logit_bias": {"a": 1}}, "logit_bias.a", "invalid_value"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1", "invalid_value"),
        ({"logprobs": 1}, "logprobs", "invalid_type"),
        ({"top_logprobs": 1}, "top_logprobs", "invalid_value"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"stream": "yes"}, "stream", "invalid_type"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        (
            {"stream": True, "stream_options": {"x": 1}},
            "stream_options.x",
            "unknown_parameter",
        ),
        ({"response_format": {"type": "yaml"}}, "response_format.type", "invalid_value"),
        (
            {"response_format": {"type": "json_schema"}},
            "response_format.json_schema",
            "missing_required_parameter",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
            "response_format.json_schema.schema",
            "missing_required_parameter",
        ),
        ({"structured_outputs": {"regex": 1}}, "structured_outputs.regex", "invalid_type"),
        ({"structured_outputs": {"xml": ""}}, "structured_outputs.xml", "unknown_parameter"),
        ({"regex": "a", "ebnf": "a"}, "ebnf", "invalid_value"),
        (
            {"structured_outputs": {"regex": "a", "choice": ["a"]}},
            "structured_outputs.choice",
            "invalid_value",
        ),
        (
            {"response_format": {"type": "json_object"}, "structured_outputs": {"grammar": "a"}},
            "structured_outputs.grammar",
            "invalid_value",
        ),
        ({"tools": []}, "tools", "invalid_value"),
        ({"functions": []}, "functions", "unsupported_parameter"),
        ({"function_call": "auto"}, "function_call", "unsupported_parameter"),
        ({"store": True}, "store", "unsupported_parameter"),
        ({"store": 0}, "store", "unsupported_parameter"),
        ({"temprature": 1}, "temprature", "unknown_parameter"),
        ({"user": 5}, "user", "invalid_type"),
    ],
)
async def test_wrong_field_is_refused_by_name(make_proxy, fields, param, code) -> None:
    proxy = make_proxy()
    response = await proxy.chat(**fields)
    assert response.status_code == 400
    assert list(response.json()) == ["error"]
    error = response.json()["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert (error["param"], error["code"]) == (param, code)
    assert error["type"] == "invalid_request_error"
    assert re.fullmatch(r"[A-Z'].*\.", error["message"]), error["message"]
    assert proxy.backend.calls == []


SCHEMA = {"type": "object", "properties": {"a": {"enum": ["HUGE"]}}}
TOOL = {"name": "f", "parameters": SCHEMA}
FORMAT = {"type": "json_schema", "json_schema": {"name": "f", "schema": SCHEMA}}


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("chat/completions", {"response_format": FORMAT}, "response_format.json_schema.schema"),
        (
            "chat/completions",
            {"tools": [{"type": "function", "function": TOOL}]},
            "tools[0].function.parameters",
        ),
        ("chat/completions", {"structured_outputs": {"json": SCHEMA}}, "structured_outputs.json"),
        ("responses", {"tools": [{"type": "function"} | TOOL]}, "tools[0].parameters"),
    ],
)
async def test_number_that_no_float_holds_is_refused(make_proxy, path, fields, param) -> None:
    """It is JSON, was read as infinity, and went to the stages as something that is no JSON."""
    proxy = make_proxy()
    prompt = {"input": "hi"} if path == "responses" else {"messages": [USER]}
    for number, is_refused in (("1e400", True), ("-1e400", True), ("1e300", False)):
        body = json.dumps({"model": MODEL.id} | prompt | fields).replace('"HUGE"', number)
        response = await proxy.http.post(f"/v1/{path}", content=body)
        error = response.json().get("error", {})
        assert (error.get("param") == param) is is_refused, error
        assert not is_refused or (response.status_code, error["code"]) == (400, "invalid_value")


@pytest.mark.parametrize("name", sorted(UNSUPPORTED_CHAT))
async def test_known_field_is_unsupported_unless_it_asks_for_nothing(make_proxy, name) -> None:
    proxy = make_proxy(FakeBackend(text_deltas("a")))
    response = await proxy.chat(**{name: {"something": 1}})
    assert response.json()["error"]["code"] == "unsupported_parameter"
    for off in (None, *UNSUPPORTED_CHAT[name]):
        assert (await proxy.chat(**{name: off})).status_code == 200


@pytest.mark.parametrize(
    "name",
    [
        *("chat_template", "chat_template_kwargs", "mm_processor_kwargs", "media_io_kwargs"),
        *("guided_regex", "guided_grammar", "lora_path"),
        *("mm_hashes", "prompt_embeds", "logits_processors", "custom_logit_processor"),
    ],
)
async def test_fields_that_steer_the_server_are_refused(make_proxy, name) -> None:
    """CVE-2025-61620 (PYSEC-2026-2013), CVE-2025-62426 (GHSA-69j4-grxj-j64p): templates of clients;
    CVE-2026-105758 (GHSA-x6mc-67gf-chw4), CVE-2026-105760 (GHSA-58v5-2m8f-94pr), CVE-2026-126396
    (GHSA-w4cg-mhc7-mgw3): arguments of the image processor; CVE-2026-7304: processors of logits."""
    proxy = make_proxy()
    for fields in ({name: "x"}, {name: {"x": 1}}, content(image(url="https://x") | {name: "x"})):
        response = await proxy.chat(**fields)
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["code"] in ("unsupported_parameter", "unknown_parameter", "invalid_type")
    assert proxy.backend.calls == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        *(
            ({"chat_template_kwargs": {name: []}}, f"chat_template_kwargs.{name}")
            for name in ("messages", "tools", "documents", "chat_template", "tokenize", "x")
        ),
        (
            {"chat_template_kwargs": {"enable_thinking": "no"}},
            "chat_template_kwargs.enable_thinking",
        ),
        *(
            ({"chat_template_kwargs": {"date_string": text}}, "chat_template_kwargs.date_string")
            for text in ("<|im_end|>", "", "{{ 1 }}", "1\n", "x" * 41)
        ),
        *(
            ({"mm_processor_kwargs": {name: 1}}, f"mm_processor_kwargs.{name}")
            for name in ("size", "num_crops", "do_resize", "fps")
        ),
        ({"mm_processor_kwargs": {"max_pixels": 0}}, "mm_processor_kwargs.max_pixels"),
        (
            {"mm_processor_kwargs": {"min_pixels": 5, "max_pixels": 4}},
            "mm_processor_kwargs.min_pixels",
        ),
        ({"add_generation_prompt": True, "continue_final_message": True}, "continue_final_message"),
        ({"priority": 2**31}, "priority"),
        ({"priority": 0.5}, "priority"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        (
            {"stream": True, "stream_options": {"continuous_usage_stats": True}},
            "stream_options.continuous_usage_stats",
        ),
    ],
)
async def test_options_outside_of_what_is_allowed_are_refused_by_name(
    make_proxy, fields, param
) -> None:
    proxy = make_proxy()
    response = await proxy.chat(**fields)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert proxy.backend.calls == []


@pytest.mark.parametrize("name", ["content_hash", "hash", "id", "cache_key", "mm_hash"])
async def test_ids_and_hashes_of_clients_are_refused(make_proxy, name) -> None:
    """CVE-2026-105754 (GHSA-ph72-cqr5-qpp7): a hash of the client's poisons or reads the entry of another.

    A `uuid` is no such thing; tests of the image store tell what it is."""
    proxy = make_proxy()
    for part in (image(url="https://x") | {name: "x"}, image(url="https://x", **{name: "x"})):
        response = await proxy.chat(**content(part))
        assert response.json()["error"]["code"] == "unknown_parameter"
        assert response.json()["error"]["param"].endswith(name)
    assert proxy.backend.calls == []


@pytest.mark.parametrize(
    "kind",
    ["image_embeds", "input_embeds", "audio_url", "input_audio", "image", "video", "file"],
)
async def test_tensors_and_other_media_of_clients_are_refused(make_proxy, kind) -> None:
    """CVE-2025-62164, CVE-2025-62372, CVE-2026-56340 (GHSA-mcmc-2m55-j8jj), CVE-2026-73557
    (GHSA-pr7f-p5mw-fc87): tensors that are read from the request."""
    response = await make_proxy().chat(**content({"type": kind, kind: "AAAA"}))
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "messages[1].content[0].type"


TEXTS = st.sampled_from(["", "x", "ä", "🚕", "\0", "123456789", "user", "text", "image_url", "url"])
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(sorted({*ChatCompletionRequest.model_fields, *UNSUPPORTED_CHAT}))


def test_no_body_is_a_server_error(make_proxy) -> None:
    """CVE-2026-47475: an assertion that a request could reach."""
    proxy = make_proxy(FakeBackend(text_deltas("a")))

    # Without the phases that look for the smallest or the guilty part of an example: they trace every line.
    @settings(
        max_examples=100,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(fields=st.dictionaries(FIELDS, JSON, max_size=4))
    def check(fields) -> None:
        response = asyncio.run(proxy.chat(**fields))
        assert response.status_code in (200, 400, 404), response.text

    check()


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 300 + b"]" * 300,
        b'{"model":"m","messages":[{"role":"user","content":' + b"[" * 300 + b"]" * 300 + b"}]}",
        b"",
        b"{",
        b"not json",
        b'{"model": NaN}',
        b'{"model": "\xff"}',
        b'{"model": "\\ud800"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
)
async def test_body_that_is_not_json_is_refused(make_proxy, body) -> None:
    response = await make_proxy().http.post("/v1/chat/completions", content=body)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid_json"


async def test_body_that_is_not_an_object_is_refused(make_proxy) -> None:
    response = await make_proxy().http.post("/v1/completions", content=b"[1]")
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid_type"


async def test_infinite_numbers_are_out_of_range(make_proxy) -> None:
    body = b'{"model":"m","messages":[{"role":"user","content":"x"}],"temperature":1e999}'
    response = await make_proxy().http.post("/v1/chat/completions", content=body)
    assert response.json()["error"]["param"] == "temperature"


async def test_unknown_model_is_not_found(make_proxy) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await make_proxy().openai.chat.completions.create(model="gpt-x", messages=[USER])
    assert caught.value.code == "model_not_found"
    assert caught.value.param is None
    assert "The model `gpt-x` does not exist or you do not have access to it." in str(caught.value)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/docs", 404, "unknown_url"),
        ("GET", "/redoc", 404, "unknown_url"),
        ("POST", "/v1/embeddings", 404, "unknown_url"),
        ("GET", "/v1/chat/completions", 405, "method_not_supported"),
        ("POST", "/v1/models", 405, "method_not_supported"),
    ],
)
async def test_unknown_routes_get_an_error_object(make_proxy, method, path, status, code) -> None:
    response = await make_proxy().http.request(method, path)
    assert response.status_code == status
    assert response.json()["error"]["code"] == code


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "type_", "param", "code", "retry_after"),
    [
        (
            PromptTooLongError("too long", param="prompt"),
            *(400, "invalid_request_error", "messages", "context_length_exceeded", None),
        ),
        (
            InvalidImageError("small", code="image_too_small", param="messages[0].content[0]"),
            *(400, "invalid_request_error", "messages[0].content[0]", "image_too_small", None),
        ),
        (
            InvalidRequestError("bad", param="temperature"),
            *(400, "invalid_request_error", "temperature", "invalid_value", None),
        ),
        (OverloadedError("full"), 429, "requests", None, "rate_limit_exceeded", "3"),
        (ServiceUnavailableError(), 503, "server_error", None, None, "3"),
        (EngineError("secret detail"), 500, "server_error", None, None, None),
    ],
)
async def test_errors_before_the_first_token_are_http_errors(
    make_proxy, png_url, stream, error, status, type_, param, code, retry_after
) -> None:
    proxy = make_proxy(FakeBackend([error]), settings=Settings(retry_after_s=3))
    messages = content(image(url=png_url))["messages"][1:]
    response = await proxy.chat(messages=messages, stream=stream)
    assert response.status_code == status
    got = response.json()["error"]
    assert (got["type"], got["param"], got["code"]) == (type_, param, code)
    assert response.headers.get("retry-after") == retry_after
    assert "secret" not in response.text


async def test_overload_is_a_rate_limit_error_to_the_client(make_proxy) -> None:
    proxy = make_proxy(FakeBackend([OverloadedError("The queue is full.")]))
    with pytest.raises(openai.RateLimitError) as caught:
        await proxy.openai.chat.completions.create(model=MODEL.id, messages=[USER])
    assert caught.value.code == "rate_limit_exceeded"


async def test_error_after_the_first_token_is_an_event_and_the_end(make_proxy) -> None:
    proxy = make_proxy(FakeBackend([Delta(text="a"), EngineError("secret detail")]))
    response = await proxy.chat(stream=True)
    assert response.status_code == 200
    events = response.text.rstrip().split("\n\n")
    assert json.loads(events[-1].removeprefix("data: "))["error"] == {
        "message": "The server had an error while processing your request.",
        "type": "server_error",
        "param": None,
        "code": None,
    }
    assert "secret" not in response.text
    stream = await proxy.openai.chat.completions.create(
        model=MODEL.id, messages=[USER], stream=True
    )
    with pytest.raises(openai.APIError):
        async for _ in stream:
            pass


@pytest.mark.parametrize(
    "script",
    [
        [],
        [Delta(text="a")],
        [*text_deltas("a"), Delta(text="more")],
        [Delta(text="a", index=1)],
    ],
)
async def test_answer_that_breaks_the_contract_is_a_server_error(make_proxy, script) -> None:
    """A stream that ends early must not look like a short answer."""
    response = await make_proxy(FakeBackend(script)).chat()
    assert response.status_code == 500


async def test_unexpected_exception_is_a_server_error_with_a_request_id(make_proxy) -> None:
    proxy = make_proxy(FakeBackend([RuntimeError("secret")]), raise_app_exceptions=False)
    response = await proxy.http.post(
        "/v1/completions",
        json={"model": MODEL.id, "prompt": "x"},
        headers={"x-request-id": "my-id"},
    )
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"
    assert response.headers["x-request-id"] == "my-id"
    assert "secret" not in response.text
    assert 'status="500"' in (await proxy.http.get("/metrics")).text


async def test_backend_that_cancels_by_itself_is_not_a_success(make_proxy) -> None:
    response = await make_proxy(FakeBackend([RequestCancelledError("gone")])).chat()
    assert response.status_code == 499


async def test_errors_do_not_cancel_what_has_already_ended(make_proxy) -> None:
    proxy = make_proxy(FakeBackend([OverloadedError("full")]))
    await proxy.chat()
    assert proxy.backend.cancelled == []
