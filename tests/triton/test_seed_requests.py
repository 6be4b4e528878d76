"""The four requests of the document the project started from, with only hosts and model changed.

curl, `requests`, the OpenAI client with an image URL, and two images with `temperature=0`. The pictures lie
at the paths of the original URLs on a server on loopback.
"""

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import ThreadingHTTPServer

import pytest
import requests
from openai import OpenAI

from tests.triton.conftest import EXAMPLES, MODEL, QuietHandler
from triton_vlm.stack import ServingStack

CHOICE_KEYS = {"index", "message", "logprobs", "finish_reason", "matched_stop"}
MESSAGE_KEYS = {"role", "content", "reasoning_content", "tool_calls"}
USAGE_KEYS = {
    "prompt_tokens",
    "total_tokens",
    "completion_tokens",
    "prompt_tokens_details",
    "reasoning_tokens",
}


@pytest.fixture(scope="module")
def raw_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("web")
    assets = root / "sgl-project" / "sglang" / "main"
    (assets / "examples" / "assets").mkdir(parents=True)
    shutil.copy(EXAMPLES / "two-shapes.png", assets / "examples" / "assets" / "example_image.png")
    (assets / "assets").mkdir()
    shutil.copy(EXAMPLES / "number.png", assets / "assets" / "logo.png")
    handler = partial(QuietHandler, directory=str(root))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def example_image_url(raw_host: str) -> str:
    return raw_host + "/sgl-project/sglang/main/examples/assets/example_image.png"


@pytest.fixture(scope="module")
def logo_image_url(raw_host: str) -> str:
    return raw_host + "/sgl-project/sglang/main/assets/logo.png"


def check_shape(body: dict) -> None:
    """Every key that the document shows, and numbers that add up."""
    assert {"id", "object", "created", "model", "choices", "usage", "metadata"} <= set(body)
    assert body["object"] == "chat.completion"
    assert body["model"] == MODEL
    (choice,) = body["choices"]
    assert set(choice) >= CHOICE_KEYS
    assert set(choice["message"]) >= MESSAGE_KEYS
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"]
    usage = body["usage"]
    assert set(usage) >= USAGE_KEYS
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert body["metadata"] == {"weight_version": "default"}


def test_curl(stack: ServingStack, example_image_url: str) -> None:
    port = stack.proxy.url.rpartition(":")[2]
    curl_command = f"""
curl -s http://localhost:{port}/v1/chat/completions \\
-H "Content-Type: application/json" \\
-d '{{
"model": "{MODEL}",
"messages": [
{{
"role": "user",
"content": [
{{
"type": "text",
"text": "What’s in this image?"
}},
{{
"type": "image_url",
"image_url": {{
"url": "{example_image_url}"
}}
}}
]
}}
],
"max_tokens": 300
}}'
"""
    answers = []
    for _ in range(2):
        response = subprocess.check_output(curl_command, shell=True).decode()
        body = json.loads(response)
        check_shape(body)
        answers.append(body["choices"][0]["message"]["content"])
    assert answers[0] == answers[1]


def test_python_requests(stack: ServingStack, example_image_url: str) -> None:
    url = f"{stack.proxy.url}/v1/chat/completions"
    data = {
        "model": MODEL,
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What’s in this image?"},
                    {
                        "type": "image_url",
                        "image_url": {"url": example_image_url},
                    },
                ],
            }
        ],
        "max_tokens": 300,
    }
    response = requests.post(url, json=data)
    check_shape(response.json())


def test_openai_client(stack: ServingStack, example_image_url: str) -> None:
    client = OpenAI(base_url=f"{stack.proxy.url}/v1", api_key="None")
    response = client.chat.completions.create(
        model=MODEL,
        messages=[
            {
                "role": "user",
                "content": [
                    {
                        "type": "text",
                        "text": "What is in this image?",
                    },
                    {
                        "type": "image_url",
                        "image_url": {"url": example_image_url},
                    },
                ],
            }
        ],
        max_tokens=300,
    )
    check_shape(response.model_dump())


def test_multiple_image_inputs(
    stack: ServingStack, example_image_url: str, logo_image_url: str
) -> None:
    client = OpenAI(base_url=f"{stack.proxy.url}/v1", api_key="None")
    response = client.chat.completions.create(
        model=MODEL,
        messages=[
            {
                "role": "user",
                "content": [
                    {
                        "type": "image_url",
                        "image_url": {
                            "url": example_image_url,
                        },
                    },
                    {
                        "type": "image_url",
                        "image_url": {
                            "url": logo_image_url,
                        },
                    },
                    {
                        "type": "text",
                        "text": "I have two very different images. They are not related at all. "
                        "Please describe the first image in one sentence, and then describe the "
                        "second image in another sentence.",
                    },
                ],
            }
        ],
        temperature=0,
    )
    check_shape(response.model_dump())


def test_streamed_chunks_have_the_keys_too(stack: ServingStack, example_image_url: str) -> None:
    client = OpenAI(base_url=f"{stack.proxy.url}/v1", api_key="None")
    chunks = client.chat.completions.create(
        model=MODEL,
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What’s in this image?"},
                    {"type": "image_url", "image_url": {"url": example_image_url}},
                ],
            }
        ],
        max_tokens=300,
        stream=True,
    )
    bodies = [chunk.model_dump(exclude_unset=True) for chunk in chunks]
    assert all(body["object"] == "chat.completion.chunk" for body in bodies)
    assert all("matched_stop" in body["choices"][0] for body in bodies)
