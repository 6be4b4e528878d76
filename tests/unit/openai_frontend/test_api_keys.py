"""Who may ask: keys, their file, and what everyone else is answered."""

from __future__ import annotations

import hashlib
import hmac
import os
from pathlib import Path

import httpx
import openai
import pytest
from fake_backend import MODEL, FakeBackend, text_deltas
from fake_clock import Clock

from openai_frontend.api_keys import ApiKeys, key_line, new_key
from openai_frontend.app import create_app
from openai_frontend.authentication import AuthenticationMiddleware
from openai_frontend.record import ENDPOINTS
from openai_frontend.settings import Settings, SettingsError

pytestmark = pytest.mark.anyio

ALICE, BOB = "sk-alice-0123456789abcdef", "sk-bob-0123456789abcdef"
PUBLIC = {"/health/live", "/health/ready"}


@pytest.fixture
def proxy(make_proxy):
    return make_proxy(FakeBackend(text_deltas("a")), settings=Settings(api_keys=(ALICE, BOB)))


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


# What clients see


async def test_request_without_a_key_gets_openais_401(proxy) -> None:
    response = await proxy.chat()
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.headers["x-request-id"]
    assert response.json() == {
        "error": {
            "message": "You didn't provide an API key. You need to provide your API key in an "
            "Authorization header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY).",
            "type": "invalid_request_error",
            "param": None,
            "code": None,
        }
    }
    assert proxy.backend.calls == []


async def test_wrong_key_gets_openais_401_and_is_shown_masked(proxy) -> None:
    client = proxy.openai.with_options(api_key=ALICE + "x")
    with pytest.raises(openai.AuthenticationError) as caught:
        await client.models.list()
    assert caught.value.code == "invalid_api_key"
    assert caught.value.body["message"] == "Incorrect API key provided: sk-al***fx."


@pytest.mark.parametrize("key", ["hunter2", "x" * 15])
async def test_short_key_is_not_shown_at_all(proxy, key) -> None:
    response = await proxy.http.get("/v1/models", headers=bearer(key))
    assert response.json()["error"]["message"] == "Incorrect API key provided: ***."


@pytest.mark.parametrize("key", [ALICE, BOB])
@pytest.mark.parametrize(
    "headers",
    [
        lambda key: {"authorization": f"Bearer {key}"},
        lambda key: {"authorization": f"bearer  {key} "},
        lambda key: {"x-api-key": key},
        lambda key: {"authorization": "Basic dXNlcg==", "x-api-key": key},
    ],
)
async def test_every_key_opens_the_api_in_openais_and_in_anthropics_header(
    proxy, key, headers
) -> None:
    assert (await proxy.http.get("/v1/models", headers=headers(key))).status_code == 200


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"authorization": ALICE}, None),
        ({"authorization": "Bearer"}, None),
        ({"authorization": "Bearer "}, None),
        ({"authorization": f"Basic {ALICE}"}, None),
        ({"x-api-key": ""}, None),
        ({"authorization": f"Bearer {ALICE} {BOB}"}, None),
        ({"authorization": f"Bearer {ALICE},{BOB}"}, "invalid_api_key"),
        ({"authorization": f"Bearer {ALICE.upper()}"}, "invalid_api_key"),
        ({"authorization": "Bearer wrong", "x-api-key": ALICE}, "invalid_api_key"),
        ({"x-api-key": "sch\xfc\xdf".encode("latin-1")}, "invalid_api_key"),
    ],
)
async def test_header_without_a_valid_key_is_refused(proxy, headers, code) -> None:
    response = await proxy.http.get("/v1/models", headers=headers)
    assert response.status_code == 401
    assert response.json()["error"]["code"] == code


@pytest.mark.parametrize(
    "path",
    [
        *sorted({path.replace("{model}", MODEL.id) for path in ENDPOINTS} - PUBLIC),
        *("/docs", "/v1/embeddings", "/nothing", "/pages"),
        *("/health", "/health/", "/health/live/", "/health/live/../../metrics", "//health/live"),
        *("/health/ready%00", "/HEALTH/LIVE", "/health/live;x"),
    ],
)
async def test_every_path_but_the_public_ones_needs_a_key(proxy, path) -> None:
    """As vLLM's /invocations, /tokenize and /pause did not; unknown paths are not told apart."""
    for method in ("GET", "POST", "OPTIONS", "HEAD", "DELETE"):
        response = await proxy.http.request(method, path)
        assert response.status_code == 401, method
    assert (await proxy.http.get(path, headers=bearer(ALICE))).status_code != 401


async def test_health_needs_no_key(proxy) -> None:
    for path in PUBLIC:
        assert (await proxy.http.get(path)).status_code == 200


async def test_metrics_can_be_opened_by_a_setting(make_proxy) -> None:
    settings = Settings(api_keys=(ALICE,), public_metrics=True)
    proxy = make_proxy(settings=settings)
    assert (await proxy.http.get("/metrics")).status_code == 200
    assert (await proxy.http.get("/v1/models")).status_code == 401


async def test_paths_below_a_public_one_need_a_star() -> None:
    async def app(scope, receive, send) -> None:
        reached.append(scope["path"])

    reached: list[str] = []
    middleware = AuthenticationMiddleware(
        app, keys=ApiKeys(Settings(api_keys=(ALICE,))), public_paths=("/", "/page/*")
    )

    async def send(message) -> None: ...

    for path in ("/", "/page/", "/page/a.js", "/page", "/v1/models", "/pages/x"):
        scope = {"type": "http", "path": path, "headers": [], "state": {"record": None}}
        await middleware(scope, None, send)
    assert reached == ["/", "/page/", "/page/a.js"]


async def test_refused_request_is_not_read_and_does_not_reach_the_queue(proxy) -> None:
    async def body():
        raise AssertionError("read")
        yield b""

    response = await proxy.http.post("/v1/chat/completions", content=body())
    assert response.status_code == 401


async def test_no_key_is_asked_for_where_none_is_configured(make_proxy) -> None:
    assert (await make_proxy(FakeBackend(text_deltas("a"))).chat()).status_code == 200


async def test_log_names_the_owner_and_never_the_key(make_proxy, caplog) -> None:
    settings = Settings(api_keys=(f"{ALICE} name=alice",))
    proxy = make_proxy(FakeBackend(text_deltas("a")), settings=settings)
    with caplog.at_level("DEBUG", logger="openai_frontend"):
        proxy.http.headers["authorization"] = f"Bearer {ALICE}"
        await proxy.chat()
    assert "key=alice" in caplog.text
    assert ALICE not in caplog.text
    assert ALICE not in repr(settings)


# The keys


async def test_keys_are_kept_as_hashes_only() -> None:
    keys = ApiKeys(Settings(api_keys=(ALICE,)))
    (key,) = keys._keys
    assert key.digest == hashlib.sha256(ALICE.encode()).digest()
    assert key.digest.hex()[:8] in key.name
    assert ALICE not in repr(key)


@pytest.mark.parametrize("key", [ALICE, BOB, "wrong"])
async def test_every_key_is_compared_in_constant_time(monkeypatch, key) -> None:
    keys = ApiKeys(Settings(api_keys=(ALICE, BOB)))
    compare, compared = hmac.compare_digest, []

    def recording(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return compare(a, b)

    monkeypatch.setattr(hmac, "compare_digest", recording)
    keys.find(key.encode())
    digests = [hashlib.sha256(secret.encode()).digest() for secret in (ALICE, BOB, key)]
    assert compared == [(digests[0], digests[2]), (digests[1], digests[2])]


def test_file_may_hold_keys_hashes_names_limits_and_comments(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    hashed = hashlib.sha256(BOB.encode()).hexdigest()
    path.write_text(
        f"# people\n\n{ALICE}\n"
        f"sha256:{hashed}\tname=bob requests-per-minute=60 tokens-per-minute=1000\n"
    )
    keys = ApiKeys(Settings(api_key_file=str(path)))
    assert keys.find(ALICE.encode()).quota.headers() == {}
    bob = keys.find(BOB.encode())
    assert (bob.name, bob.requests_per_minute, bob.tokens_per_minute) == ("bob", 60, 1000)
    assert keys.find(f"sha256:{hashed}".encode()) is None
    assert keys.find(b"") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "there is no API key"),
        ("# nothing\n", "there is no API key"),
        ("secret-short\n", "line 1 of .* not 16 to 512 ASCII characters"),
        ("sk-schlüssel-0123456789\n", "line 1 of .* not 16 to 512 ASCII characters"),
        ("sha256:secret\n", "line 1 of .* no SHA-256"),
        (f"{ALICE}\n{ALICE} name=a\n", "line 2 of .* repeats"),
        (f"{ALICE} owner=a\n", "line 1 of .* something wrong after the key"),
        (f"{ALICE} name=a name=b\n", "something wrong after the key"),
        (f"{ALICE} name=\n", "something wrong after the key"),
        (f"{ALICE} requests-per-minute=0\n", "something wrong after the key"),
        (f"{ALICE} tokens-per-minute=many\n", "something wrong after the key"),
        (f"{ALICE} {BOB}\n", "something wrong after the key"),
    ],
)
def test_wrong_line_is_named_in_one_sentence_without_the_key(tmp_path, text, message) -> None:
    path = tmp_path / "keys"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError, match=message) as caught:
        ApiKeys(Settings(api_key_file=str(path)))
    assert "\n" not in str(caught.value)
    assert not any(secret in str(caught.value) for secret in (ALICE, BOB, "secret"))


def test_missing_and_binary_files_are_refused_in_one_sentence(tmp_path) -> None:
    for name, data in (("missing", None), ("binary", b"\xff\xfe")):
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(SettingsError, match="cannot be read"):
            create_app(Settings(api_key_file=str(tmp_path / name)), FakeBackend())


def test_made_key_is_accepted_by_its_line_alone(tmp_path) -> None:
    key = new_key()
    assert key != new_key()
    line = key_line(key, "alice", 60, None)
    assert key not in line
    path = tmp_path / "keys"
    path.write_text(line + "\n")
    found = ApiKeys(Settings(api_key_file=str(path))).find(key.encode())
    assert (found.name, found.requests_per_minute, found.tokens_per_minute) == ("alice", 60, None)
    with pytest.raises(SettingsError):
        key_line(key, "two words", None, None)


# The file changes


def replace(path: Path, text: str) -> None:
    """As editors and container runtimes do: a new file in the old one's place."""
    new = path.with_suffix(".new")
    new.write_text(text)
    os.replace(new, path)


def test_changed_file_is_read_again_without_a_restart(tmp_path) -> None:
    path, clock = tmp_path / "keys", Clock()
    path.write_text(ALICE)
    keys = ApiKeys(Settings(api_key_file=str(path)), clock)
    replace(path, BOB)
    assert keys.find(ALICE.encode()), "looked at once a second at most"
    clock.now = 1.0
    assert keys.find(ALICE.encode()) is None
    assert keys.find(BOB.encode())


@pytest.mark.parametrize("text", [None, "", "short", f"{BOB} oops=1"])
def test_broken_file_leaves_the_keys_as_they_were_and_is_logged(tmp_path, caplog, text) -> None:
    path, clock = tmp_path / "keys", Clock()
    path.write_text(ALICE)
    keys = ApiKeys(Settings(api_key_file=str(path)), clock)
    if text is None:
        path.unlink()
    else:
        replace(path, text)
    for clock.now in (1.0, 2.0, 3.0):
        assert keys.find(ALICE.encode())
        assert keys.find(BOB.encode()) is None
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    replace(path, BOB)
    clock.now = 4.0
    assert keys.find(BOB.encode())


def test_used_up_limit_outlives_a_reload_and_new_limits_start_full(tmp_path) -> None:
    path, clock = tmp_path / "keys", Clock()
    path.write_text(f"{ALICE} requests-per-minute=60")
    keys = ApiKeys(Settings(api_key_file=str(path)), clock)
    quota = keys.find(ALICE.encode()).quota
    replace(path, f"{BOB}\n{ALICE} requests-per-minute=60")
    clock.now = 1.0
    assert keys.find(ALICE.encode()).quota is quota
    replace(path, f"{ALICE} requests-per-minute=61")
    clock.now = 2.0
    assert keys.find(ALICE.encode()).quota is not quota


# CORS


async def test_preflight_needs_no_key_and_refusals_can_be_read(make_proxy) -> None:
    settings = Settings(api_keys=(ALICE,), cors_origins=("https://app.example",))
    proxy = make_proxy(FakeBackend(text_deltas("a")), settings=settings)
    origin = {"origin": "https://app.example"}
    preflight = await proxy.http.options(
        "/v1/chat/completions",
        headers=origin
        | {
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type,x-stainless-os",
        },
    )
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://app.example"
    assert "x-stainless-os" in preflight.headers["access-control-allow-headers"]
    assert preflight.headers["access-control-allow-methods"] == "GET, POST, DELETE"
    assert "access-control-allow-credentials" not in preflight.headers
    refused = await proxy.http.get("/v1/models", headers=origin)
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://app.example"
    allowed = await proxy.http.get("/v1/models", headers=origin | bearer(ALICE))
    assert allowed.status_code == 200
    assert "x-request-id" in allowed.headers["access-control-expose-headers"]


async def test_other_origins_and_other_methods_are_not_allowed(make_proxy) -> None:
    proxy = make_proxy(settings=Settings(cors_origins=("https://app.example",)))
    for origin, method in (("https://evil.example", "POST"), ("https://app.example", "PUT")):
        headers = {"origin": origin, "access-control-request-method": method}
        assert (await proxy.http.options("/v1/models", headers=headers)).status_code == 400
    # As if no page had asked.
    response = await proxy.http.get("/v1/models", headers={"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in response.headers


async def test_cors_is_off_by_default(make_proxy) -> None:
    response: httpx.Response = await make_proxy().http.options(
        "/v1/models",
        headers={"origin": "https://a.example", "access-control-request-method": "GET"},
    )
    assert response.status_code == 405
    assert not any(name.startswith("access-control") for name in response.headers)
