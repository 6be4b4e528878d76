"""Bad input: one clear OpenAI error each, and the server goes on, with the real Triton."""

import base64
import io
import threading

import httpx
import openai
import pytest
from PIL import Image

from tests.triton.conftest import MODEL, image_part
from triton_vlm.stack import ServingStack


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, "PNG")
    return buffer.getvalue()


def url_part(url: str) -> dict:
    return {"type": "image_url", "image_url": {"url": url}}


def ask(*parts: dict) -> dict:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "?"}, *parts]}]}


GOOD_PICTURE = png(56, 56)
TRUNCATED = base64.b64encode(png(640, 480)[:200]).decode()
IMAGE_PATH = "messages[0].content[1]"

CASES = {
    "not an image": (
        ask(image_part(b"this is no picture")),
        400,
        "invalid_image_format",
        IMAGE_PATH,
    ),
    "truncated image": (
        ask(url_part("data:image/png;base64," + TRUNCATED)),
        400,
        "image_parse_error",
        IMAGE_PATH,
    ),
    "1 x 1 image": (ask(image_part(png(1, 1))), 400, "image_too_small", IMAGE_PATH),
    "20000 x 20000 image": (
        ask(image_part(png(20000, 20000))),
        400,
        "image_too_large",
        IMAGE_PATH,
    ),
    "extreme aspect ratio": (ask(image_part(png(4000, 8))), 400, "invalid_image", IMAGE_PATH),
    "empty image": (ask(image_part(b"")), 400, "empty_image_file", IMAGE_PATH),
    "wrong base64": (
        ask(url_part("data:image/png;base64,@@@@")),
        400,
        "invalid_base64_image",
        IMAGE_PATH,
    ),
    "unreachable URL": (
        ask(url_part("http://127.0.0.1:9/x.png")),
        400,
        "failed_to_download_image",
        IMAGE_PATH,
    ),
    "file URL": (ask(url_part("file:///etc/passwd")), 400, "invalid_image_url", IMAGE_PATH),
    "too many images": (ask(*[image_part(GOOD_PICTURE)] * 17), 400, None, "messages"),
    "prompt over the context": (
        {"messages": [{"role": "user", "content": "word " * 20000}]},
        400,
        "context_length_exceeded",
        "messages",
    ),
    "max_tokens over the limit": (
        {**ask(), "max_tokens": 1_000_000},
        400,
        "invalid_value",
        "max_tokens",
    ),
    "unknown model": ({**ask(), "model": "nobody/nothing"}, 404, "model_not_found", None),
    "unknown parameter": ({**ask(), "temprature": 1}, 400, "unknown_parameter", "temprature"),
    "wrong type": ({**ask(), "temperature": "hot"}, 400, "invalid_type", "temperature"),
    "empty messages": ({"messages": []}, 400, None, "messages"),
    "typed placeholder": (
        {"messages": [{"role": "user", "content": "look: <|image_pad|>"}]},
        400,
        "invalid_value",
        "messages[0].content",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_request_is_refused_with_code_and_param(stack: ServingStack, name: str) -> None:
    body, status, code, param = CASES[name]
    response = httpx.post(
        stack.base_url + "/chat/completions", json={"model": MODEL, **body}, timeout=60
    )
    error = response.json()["error"]
    assert response.status_code == status, error
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    if code is not None:
        assert error["code"] == code, error
    if param is not None:
        assert error["param"].startswith(param), error
    assert error["message"]
    assert "0x" not in error["message"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{not json", 400),
        (b'{"model": "\xff\xfe"}', 400),
        (b"[]", 400),
        (b'{"x": "' + b"a" * (65 * 2**20) + b'"}', 413),
    ],
    ids=["not JSON", "invalid UTF-8", "not an object", "too large"],
)
def test_body_is_refused(stack: ServingStack, body: bytes, status: int) -> None:
    response = httpx.post(
        stack.base_url + "/chat/completions",
        content=body,
        headers={"Content-Type": "application/json"},
        timeout=60,
    )
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_private_address_is_refused_by_default(stack: ServingStack, repository) -> None:
    """CVE-2025-6242 and its family; a second proxy, with the default settings, on the same Triton."""
    from triton_vlm.ports import free_ports
    from triton_vlm.proxy import OpenAIProxy

    (port,) = free_ports(1)
    proxy = OpenAIProxy(stack.triton.grpc_address, host="127.0.0.1", port=port)
    proxy.start()
    try:
        proxy.wait_ready()
        for host in ("127.0.0.1", "169.254.169.254", "[::1]", "10.0.0.1", "localhost"):
            response = httpx.post(
                proxy.url + "/v1/chat/completions",
                json={"model": MODEL, **ask(url_part(f"http://{host}/x.png"))},
                timeout=60,
            )
            assert response.status_code == 400
            assert response.json()["error"]["code"] == "invalid_image_url"
    finally:
        proxy.stop()


def test_other_streams_are_not_disturbed(stack: ServingStack, client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "What can you do?"}]
    calm = client.chat.completions.create(model=MODEL, messages=messages, temperature=0)
    done = threading.Event()

    def misbehave() -> None:
        while not done.is_set():
            for name in ("truncated image", "typed placeholder", "wrong type"):
                body = {"model": MODEL, **CASES[name][0]}
                httpx.post(stack.base_url + "/chat/completions", json=body, timeout=60)

    noise = threading.Thread(target=misbehave)
    noise.start()
    try:
        answers = []
        for _ in range(5):
            chunks = client.chat.completions.create(
                model=MODEL, messages=messages, temperature=0, stream=True
            )
            answers.append("".join(chunk.choices[0].delta.content or "" for chunk in chunks))
    finally:
        done.set()
        noise.join()
    assert answers == [calm.choices[0].message.content] * 5
