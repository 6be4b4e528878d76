"""Images that clients name by a uuid: what it stands for, for whom, and for how long."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
from typing import Any

import openai
import pytest
from fake_backend import MODEL, FakeBackend, text_deltas

from openai_frontend.api_keys import ApiKey
from openai_frontend.conversation import ImageSource
from openai_frontend.errors import ImageNotFoundError
from openai_frontend.image_store import ImageStore
from openai_frontend.quota import Quota
from openai_frontend.settings import Settings

pytestmark = pytest.mark.anyio

ALICE, BOB = "sk-alice-0123456789abcdef", "sk-bob-0123456789abcdef"
KEYED = Settings(api_keys=(ALICE, BOB))
RED, BLUE = (b"\x89PNG\r\n\x1a\n" + bytes([n] * 24) for n in (1, 2))


def url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def sent(data: bytes, uuid: str = "cat") -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url(data)}, "uuid": uuid}


def named(uuid: str = "cat") -> dict[str, Any]:
    return {"type": "image_url", "image_url": None, "uuid": uuid}


def messages(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": "?"}, *parts]}]


@pytest.fixture
def proxy(make_proxy):
    return make_proxy(FakeBackend(text_deltas("a")), settings=KEYED)


async def ask(proxy, *parts: dict[str, Any], key: str = ALICE) -> list[bytes]:
    """The images that the backend gets when an OpenAI client with `key` asks."""
    client = proxy.openai.with_options(api_key=key)
    await client.chat.completions.create(model=MODEL.id, messages=messages(*parts))
    return proxy.backend.calls[-1].images


async def not_found(proxy, *parts: dict[str, Any], key: str = ALICE) -> dict[str, Any]:
    """The error that the client gets, without having asked the backend."""
    num_calls = len(proxy.backend.calls)
    with pytest.raises(openai.NotFoundError) as caught:
        await ask(proxy, *parts, key=key)
    assert len(proxy.backend.calls) == num_calls
    assert isinstance(caught.value.body, dict)
    return caught.value.body


@pytest.mark.parametrize(
    "part", [named(), {"type": "image_url", "uuid": "cat"}, named() | {"image_url": {}}]
)
async def test_a_uuid_stands_for_the_image_that_came_with_it(proxy, part) -> None:
    assert await ask(proxy, sent(RED)) == [RED]
    assert await ask(proxy, part, sent(BLUE, "dog"), part) == [RED, BLUE, RED]
    assert await ask(proxy, named("dog"), part) == [BLUE, RED]


async def test_a_uuid_changes_nothing_that_the_stages_see(proxy) -> None:
    """CVE-2026-105754 (GHSA-ph72-cqr5-qpp7): caches go by the content, whatever the client calls it."""
    without_uuid = sent(RED)
    del without_uuid["uuid"]
    for part in (without_uuid, sent(RED), named()):
        await ask(proxy, part)
    first, *others = (
        dataclasses.replace(call, request_id="", traceparent=None) for call in proxy.backend.calls
    )
    assert others == [first, first]


async def test_a_uuid_of_another_key_is_as_one_that_was_never_seen(proxy) -> None:
    """CVE-2026-105754 (GHSA-ph72-cqr5-qpp7): nobody reads or replaces what another has sent."""
    await ask(proxy, sent(RED), key=ALICE)
    stolen = await not_found(proxy, named(), key=BOB)
    assert stolen == await not_found(proxy, named("never"), key=BOB)
    assert stolen["code"] == "image_not_found"
    assert stolen["param"] == "messages[0].content[1].uuid"
    assert "send the image again" in stolen["message"]
    await ask(proxy, sent(BLUE), key=BOB)
    assert await ask(proxy, named(), key=ALICE) == [RED]
    assert await ask(proxy, named(), key=BOB) == [BLUE]


async def test_bytes_win_and_take_the_place_of_what_was_there(proxy) -> None:
    await ask(proxy, sent(RED))
    assert await ask(proxy, sent(BLUE)) == [BLUE]
    assert await ask(proxy, named()) == [BLUE]


async def test_a_uuid_stands_for_the_last_image_before_it_in_the_request(proxy) -> None:
    parts = (sent(RED), named(), sent(BLUE), named())
    assert await ask(proxy, *parts) == [RED, RED, BLUE, BLUE]
    assert await ask(proxy, named(), sent(RED), named()) == [BLUE, RED, RED]
    error = await not_found(proxy, named("dog"), sent(RED, "dog"))
    assert error["param"] == "messages[0].content[1].uuid"


async def test_nothing_is_kept_of_a_refused_request(proxy) -> None:
    with pytest.raises(openai.BadRequestError, match="unsupported image"):
        await ask(proxy, sent(RED), sent(b"%PDF", "dog"))
    await not_found(proxy, named())


async def test_detail_is_said_each_time(proxy) -> None:
    await ask(proxy, sent(RED) | {"image_url": {"url": url(RED), "detail": "low"}})
    await ask(proxy, named(), named() | {"image_url": {"detail": "low"}})
    parts = proxy.backend.calls[-1].prompt["messages"][0]["content"]
    assert [part["detail"] for part in parts[1:]] == ["auto", "low"]


async def test_named_images_count_in_the_limit_of_bytes(make_proxy) -> None:
    settings = dataclasses.replace(KEYED, max_total_image_bytes=len(RED) + len(BLUE))
    proxy = make_proxy(FakeBackend(text_deltas("a")), settings=settings)
    await ask(proxy, sent(RED), sent(BLUE, "dog"))
    with pytest.raises(openai.BadRequestError, match="together"):
        await ask(proxy, named(), named("dog"), named())


async def test_tokenize_knows_the_image_too(proxy) -> None:
    await ask(proxy, sent(RED))
    headers = {"authorization": f"Bearer {ALICE}"}
    for part, status in ((named(), 200), (named("dog"), 404)):
        body = {"model": MODEL.id, "messages": messages(part)}
        response = await proxy.http.post("/tokenize", json=body, headers=headers)
        assert response.status_code == status, response.text


@pytest.mark.parametrize(
    "uuid", ["", "x" * 257, "with space", "ümlaut", "new\nline", "end\n", 7, ["cat"]]
)
async def test_a_uuid_is_up_to_256_ascii_characters(proxy, uuid) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await ask(proxy, sent(RED) | {"uuid": uuid})
    assert caught.value.param == "messages[0].content[1].uuid"
    assert await ask(proxy, sent(RED, "!~" * 128)) == [RED]


@pytest.mark.parametrize(
    ("part", "param"), [({}, "image_url"), ({"image_url": {"detail": "low"}}, "image_url.url")]
)
async def test_an_image_needs_a_url_or_a_uuid(proxy, part, param) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await ask(proxy, {"type": "image_url"} | part)
    assert caught.value.code == "missing_required_parameter"
    assert caught.value.param == f"messages[0].content[1].{param}"


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (Settings(), "has no API keys"),
        (dataclasses.replace(KEYED, max_stored_images=0), "stores no images"),
    ],
)
@pytest.mark.parametrize("part", [sent(RED), named()])
async def test_a_uuid_is_refused_where_nothing_is_kept_for_the_client(
    make_proxy, settings, reason, part
) -> None:
    """CVE-2026-105754 (GHSA-ph72-cqr5-qpp7): without keys all clients would share one namespace."""
    proxy = make_proxy(settings=settings)
    with pytest.raises(openai.BadRequestError, match=reason) as caught:
        await ask(proxy, part)
    assert caught.value.code == "unsupported_parameter"
    assert caught.value.param == "messages[0].content[1].uuid"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (
            "/v1/responses",
            {
                "input": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "input_image", "image_url": url(RED), "uuid": "cat"},
                        ],
                    }
                ]
            },
            "input[0].content[0].uuid",
        ),
        (
            "/v1/messages",
            {
                "max_tokens": 5,
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {
                                "type": "image",
                                "source": {"type": "url", "url": "https://x"},
                                "uuid": "cat",
                            },
                        ],
                    }
                ],
            },
            "messages[0].content[0].uuid",
        ),
    ],
)
async def test_other_apis_have_no_uuid(proxy, path, body, param) -> None:
    headers = {"authorization": f"Bearer {ALICE}"}
    response = await proxy.http.post(path, json={"model": MODEL.id} | body, headers=headers)
    assert response.status_code == 400
    assert f"'{param}'" in response.json()["error"]["message"]


async def test_hits_and_misses_are_counted(proxy) -> None:
    await ask(proxy, sent(RED), named())
    await ask(proxy, named(), named())
    await not_found(proxy, named("dog"))
    headers = {"authorization": f"Bearer {ALICE}"}
    metrics = (await proxy.http.get("/metrics", headers=headers)).text.splitlines()
    assert "triton_vlm_image_store_hits_total 2.0" in metrics
    assert "triton_vlm_image_store_misses_total 1.0" in metrics


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def key(name: str) -> ApiKey:
    return ApiKey(digest=hashlib.sha256(name.encode()).digest(), name=name, quota=Quota(None, None))


FIRST, SECOND = key("first"), key("second")


def make_store(clock: Clock | None = None, **settings: Any) -> ImageStore:
    return ImageStore(Settings(**settings), lambda is_hit: None, clock or Clock())


def keep(store: ImageStore, uuid: str, num_bytes: int = 10, owner: ApiKey = FIRST) -> None:
    source = ImageSource(url="https://x", uuid=uuid, path="p")
    store.keep(owner, [source], [bytes(num_bytes)])


def has(store: ImageStore, uuid: str, owner: ApiKey = FIRST) -> bool:
    try:
        store.locate(owner, [ImageSource(url=None, uuid=uuid, path="p")])
    except ImageNotFoundError:
        return False
    return True


def test_the_image_that_was_unused_for_the_longest_time_goes_first() -> None:
    store = make_store(max_stored_images=2)
    keep(store, "a")
    keep(store, "b")
    assert has(store, "a")
    keep(store, "c")
    assert [has(store, uuid) for uuid in "abc"] == [True, False, True]


def test_bytes_of_images_are_bounded_and_replaced_ones_free() -> None:
    store = make_store(max_stored_image_bytes=30)
    for uuid in "abc":
        keep(store, uuid)
    keep(store, "c")
    assert store.num_bytes == 30
    assert has(store, "a")
    keep(store, "d", 20)
    assert store.num_bytes == 30
    assert [has(store, uuid) for uuid in "abcd"] == [True, False, False, True]


def test_an_image_that_is_larger_than_the_store_pushes_out_nothing_but_its_predecessor() -> None:
    store = make_store(max_stored_image_bytes=30)
    keep(store, "a")
    keep(store, "b")
    keep(store, "b", 31)
    assert [has(store, uuid) for uuid in "ab"] == [True, False]
    assert store.num_bytes == 10


def test_an_image_is_kept_for_some_time_after_its_last_use() -> None:
    clock = Clock()
    store = make_store(clock, stored_image_ttl_s=60)
    keep(store, "a")
    keep(store, "b")
    clock.now += 59
    assert has(store, "a")
    clock.now += 59
    assert [has(store, uuid) for uuid in "ab"] == [True, False]
    clock.now += 60
    assert not has(store, "c", SECOND)
    assert store.num_bytes == 0


def test_a_key_pushes_out_its_own_images_first() -> None:
    store = make_store(max_stored_images=3)
    keep(store, "a", owner=SECOND)
    for uuid in "abcd":
        keep(store, uuid)
    assert has(store, "a", SECOND)
    assert [has(store, uuid) for uuid in "abcd"] == [False, False, True, True]
