from __future__ import annotations

import asyncio
import dataclasses
import tomllib
from pathlib import Path

import pytest
from fake_backend import MODEL, FakeBackend, text_deltas

from openai_frontend.backend import Delta, Usage
from openai_frontend.settings import Settings
from openai_frontend.version import VERSION
from python_backend.errors import EngineError, InvalidRequestError, OverloadedError
from python_backend.image import ImageLimits, decode_image

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[3]


async def test_models_are_listed_with_their_limits(make_proxy) -> None:
    proxy = make_proxy()
    models = await proxy.openai.models.list()
    assert [model.id for model in models.data] == [MODEL.id]
    body = (await proxy.http.get("/v1/models")).json()
    assert body["object"] == "list"
    assert body["data"][0] == {
        "id": MODEL.id,
        "object": "model",
        "created": MODEL.created,
        "owned_by": "triton-vlm",
        "root": MODEL.triton_name,
        "parent": None,
        "max_model_len": 8192,
        "max_images": 4,
        "calls_tools": False,
        "reasons": False,
        "takes_videos": True,
    }


@pytest.mark.parametrize("name", [MODEL.id, MODEL.triton_name])
async def test_model_is_found_by_id_even_with_slashes(make_proxy, name) -> None:
    response = await make_proxy().http.get(f"/v1/models/{name}")
    assert response.status_code == 200
    assert response.json()["id"] == MODEL.id


async def test_model_is_found_by_percent_encoded_id(make_proxy) -> None:
    model = await make_proxy().openai.models.retrieve(MODEL.id)
    assert model.id == MODEL.id


async def test_unknown_model_is_not_found(make_proxy) -> None:
    response = await make_proxy().http.get("/v1/models/a/b")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


async def test_health_tells_alive_from_ready(make_proxy) -> None:
    proxy = make_proxy(FakeBackend(ready=False))
    assert (await proxy.http.get("/health/live")).status_code == 200
    response = await proxy.http.get("/health/ready")
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    proxy.backend.ready = True
    assert (await proxy.http.get("/health/ready")).status_code == 200


ONE_TOKEN = Delta(
    text="a",
    token_ids=(1,),
    finish_reason="length",
    usage=Usage(prompt_tokens=3, completion_tokens=1),
)


async def test_probe_asks_every_model_for_one_token_about_a_new_picture(make_proxy) -> None:
    text_only = dataclasses.replace(MODEL, id="text", triton_name="text", max_images=0)
    proxy = make_proxy(FakeBackend([ONE_TOKEN], [MODEL, text_only]))
    for _ in range(2):
        response = await proxy.http.get("/health/generate")
        assert (response.status_code, response.json()) == (200, {"status": "generating"})
    calls = proxy.backend.calls
    assert [call.model for call in calls] == [MODEL.triton_name, "text"] * 2
    assert all(call.sampling["max_tokens"] == 1 for call in calls)
    assert len({call.request_id for call in calls}) == 4
    assert [len(call.images) for call in calls] == [1, 0, 1, 0]
    first, second = (decode_image(call.images[0], ImageLimits()) for call in calls[::2])
    assert first.size == second.size == (32, 32)
    assert first.tobytes() != second.tobytes()


async def test_probe_is_counted_apart_from_what_clients_generate(make_proxy) -> None:
    proxy = make_proxy(FakeBackend([ONE_TOKEN]))
    await proxy.http.get("/health/generate")
    metrics = (await proxy.http.get("/metrics")).text
    line = 'triton_vlm_requests_total{endpoint="/health/generate",status="200"}'
    assert sample(metrics, line) == 1
    assert sample(metrics, "triton_vlm_generation_tokens_total") == 0
    assert sample(metrics, "triton_vlm_e2e_request_latency_seconds_count") == 0


@pytest.mark.parametrize(
    ("backend", "status"),
    [
        (FakeBackend(models_list=[]), 503),
        (FakeBackend([EngineError("secret")]), 503),
        (FakeBackend([InvalidRequestError("secret")]), 503),
        (FakeBackend([dataclasses.replace(ONE_TOKEN, token_ids=())]), 503),
        # Busy is not broken: whoever restarts servers must be able to tell.
        (FakeBackend([OverloadedError("full")]), 429),
    ],
)
async def test_probe_that_gets_no_token_fails(make_proxy, backend, status) -> None:
    response = await make_proxy(backend).http.get("/health/generate")
    assert response.status_code == status
    assert response.headers["retry-after"] == "1"
    assert "secret" not in response.text


async def test_probe_does_not_wait_for_ever_and_ends_what_it_began(make_proxy) -> None:
    backend = FakeBackend([asyncio.Event(), ONE_TOKEN])
    proxy = make_proxy(backend, settings=Settings(probe_timeout_s=0.01))
    response = await proxy.http.get("/health/generate")
    assert response.status_code == 503
    assert backend.cancelled == [backend.calls[0].request_id]


async def test_probes_at_the_same_time_are_one(make_proxy) -> None:
    go_on = asyncio.Event()
    proxy = make_proxy(FakeBackend([go_on, ONE_TOKEN]))
    probes = [asyncio.create_task(proxy.http.get("/health/generate")) for _ in range(5)]
    await proxy.backend.waiting.wait()
    go_on.set()
    assert [(await probe).status_code for probe in probes] == [200] * 5
    assert len(proxy.backend.calls) == 1


async def test_version_is_the_packages(make_proxy) -> None:
    response = await make_proxy().http.get("/version")
    assert response.json() == {"version": VERSION}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == VERSION


def sample(metrics: str, name: str) -> float:
    return next(
        float(line.rsplit(" ", 1)[1]) for line in metrics.splitlines() if line.startswith(name)
    )


async def test_metrics_count_requests_and_tokens(make_proxy) -> None:
    *deltas, last = text_deltas("a b", prompt_tokens=10)
    guessed = dataclasses.replace(last.usage, draft_tokens=5, accepted_draft_tokens=2)
    proxy = make_proxy(FakeBackend([*deltas, dataclasses.replace(last, usage=guessed)]))
    await proxy.chat()
    await proxy.chat(stream=True)
    await proxy.complete()
    await proxy.chat(temperature=9)
    await proxy.http.get("/v1/models/x")
    await proxy.http.get("/no/such/path")
    response = await proxy.http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    metrics = response.text
    for endpoint, status, count in [
        ("/v1/chat/completions", 200, 2),
        ("/v1/chat/completions", 400, 1),
        ("/v1/completions", 200, 1),
        ("/v1/models/{model}", 404, 1),
        ("other", 404, 1),
    ]:
        line = f'triton_vlm_requests_total{{endpoint="{endpoint}",status="{status}"}}'
        assert sample(metrics, line) == count
    assert sample(metrics, "triton_vlm_prompt_tokens_total") == 30
    assert sample(metrics, "triton_vlm_generation_tokens_total") == 9
    assert sample(metrics, "triton_vlm_draft_tokens_total") == 15
    assert sample(metrics, "triton_vlm_accepted_draft_tokens_total") == 6
    assert sample(metrics, "triton_vlm_requests_running") == 0
    assert sample(metrics, "triton_vlm_time_to_first_token_seconds_count") == 3
    assert sample(metrics, "triton_vlm_time_per_output_token_seconds_count") == 3
    assert sample(metrics, "triton_vlm_e2e_request_latency_seconds_count") == 4
    assert sample(metrics, "triton_vlm_image_fetch_seconds_count") == 0


async def test_each_application_has_its_own_metrics(make_proxy) -> None:
    first, second = make_proxy(), make_proxy()
    await first.http.get("/health/live")
    assert "/health/live" not in (await second.http.get("/metrics")).text


async def test_fetched_images_are_measured(make_proxy, png) -> None:
    proxy = make_proxy(FakeBackend(text_deltas("a")), settings=Settings())
    part = {"type": "image_url", "image_url": {"url": "http://127.0.0.1/a.png"}}
    await proxy.chat(messages=[{"role": "user", "content": [part]}])
    metrics = (await proxy.http.get("/metrics")).text
    assert sample(metrics, "triton_vlm_image_fetch_seconds_count") == 1


async def test_log_has_one_line_per_request_without_its_content(make_proxy, caplog) -> None:
    proxy = make_proxy(FakeBackend(text_deltas("secret answer")))
    with caplog.at_level("INFO", logger="openai_frontend"):
        await proxy.http.post(
            "/v1/completions",
            json={"model": MODEL.id, "prompt": "secret prompt"},
            headers={"x-request-id": "abc"},
        )
    assert len(caplog.messages) == 1
    line = caplog.messages[0]
    assert "request abc /v1/completions status=200" in line
    assert "prompt_tokens=7 completion_tokens=3" in line
    assert "secret" not in caplog.text


async def test_no_log_line_has_anything_of_a_prompt_an_answer_or_an_image(
    make_proxy, caplog, png_url
) -> None:
    image = {"type": "image_url", "image_url": {"url": png_url}}
    by_url = {"type": "image_url", "image_url": {"url": "http://127.0.0.1/secret.png"}}
    text = {"type": "text", "text": "secret prompt"}
    fails_late = FakeBackend([*text_deltas("secret answer")[:2], EngineError("failed")])
    with caplog.at_level("DEBUG"):
        for backend in (FakeBackend(text_deltas("secret answer")), fails_late):
            proxy = make_proxy(backend)
            for stream in (False, True):
                await proxy.chat(
                    messages=[{"role": "user", "content": [text, image]}], stream=stream
                )
                await proxy.complete(prompt="secret prompt", stream=stream)
        await proxy.chat(messages=[{"role": "user", "content": [text, by_url]}])
        await proxy.chat(model="secret")
        await proxy.chat(stop=["secret"], temperature=9)
        await proxy.http.post("/v1/messages", content=b'{"messages": "secret')
        await proxy.http.post("/tokenize", json={"model": MODEL.id, "prompt": "secret"})
    lines = [r.getMessage() for r in caplog.records if r.name.startswith("openai_frontend")]
    assert sum(line.startswith("request ") and " status=" in line for line in lines) == 13
    assert "secret" not in caplog.text
    assert png_url not in caplog.text
