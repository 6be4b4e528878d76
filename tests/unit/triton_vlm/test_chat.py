from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from triton_vlm.chat import ChatClient, ChatError

URL = "http://127.0.0.1:1/v1"
USAGE = {
    "prompt_tokens": 1307,
    "completion_tokens": 3,
    "prompt_tokens_details": {"image_tokens": 280},
}


def events(*texts: str, done: bool = True) -> bytes:
    """A stream that answers with `texts`."""
    chunks = [{"choices": [{"index": 0, "delta": {"content": text}}]} for text in texts]
    chunks.append({"choices": [], "usage": USAGE})
    lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
    return "".join([": keep-alive\n\n", *lines, "data: [DONE]\n\n" if done else ""]).encode()


class Server:
    """Answers each chat request with the next of `answers` and remembers its body."""

    def __init__(self, *answers: Callable[[], httpx.Response]) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[httpx.Headers] = []
        self._answers = list(answers)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.headers.append(request.headers)
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "served"}]})
        self.bodies.append(json.loads(request.content))
        return self._answers.pop(0)()

    def client(self, **options: Any) -> ChatClient:
        return ChatClient(URL, transport=httpx.MockTransport(self), **options)


def test_an_answer_comes_piece_by_piece_from_the_first_model_served() -> None:
    server = Server(lambda: httpx.Response(200, content=events("A red", " circle.")))
    with server.client(max_tokens=5, temperature=0.0) as client:
        assert list(client.ask("What is this?")) == ["A red", " circle."]
    (body,) = server.bodies
    assert body["model"] == "served"
    assert (body["max_completion_tokens"], body["temperature"], body["stream"]) == (5, 0.0, True)


def test_the_end_of_an_answer_tells_times_and_tokens() -> None:
    server = Server(lambda: httpx.Response(200, content=events("A red", " circle.")))
    with server.client() as client:
        answer = client.ask("What is this?")
        assert answer.facts() == ""
        list(answer)
    assert server.bodies[0]["stream_options"] == {"include_usage": True}
    assert answer.text == "A red circle."
    time, _, *tokens = answer.facts().split(" · ")
    assert time.endswith(" s to the first token")
    assert tokens == ["1,307 prompt tokens, 280 of them pictures", "3 answer tokens"]


@pytest.mark.parametrize(("key", "header"), [("secret", "Bearer secret"), (None, None)])
def test_a_key_goes_with_every_request(key: str | None, header: str | None) -> None:
    server = Server(lambda: httpx.Response(200, content=events("Yes.")))
    with server.client(api_key=key) as client:
        list(client.ask("?"))
    assert [headers.get("authorization") for headers in server.headers] == [header] * 2


@pytest.mark.parametrize(
    ("num_pieces", "roles"), [(0, ["user"]), (1, ["user", "assistant", "user"])]
)
def test_a_stopped_answer_is_remembered_if_it_has_begun(num_pieces: int, roles: list[str]) -> None:
    server = Server(*[lambda: httpx.Response(200, content=events("Red", " or so."))] * 2)
    with server.client() as client:
        pieces = iter(client.ask("Colour?"))
        for _ in range(num_pieces):
            next(pieces)
        pieces.close()
        list(client.ask("Form?"))
    assert [message["role"] for message in server.bodies[-1]["messages"]] == roles


@pytest.mark.parametrize(
    ("status", "code", "advice"),
    [
        (401, "invalid_api_key", "--api-key or in TRITON_VLM_API_KEY"),
        (404, "model_not_found", "--model takes one of: served."),
        (429, "rate_limit_exceeded", "in 7 seconds or later"),
    ],
)
def test_a_refusal_says_what_to_do(status: int, code: str, advice: str) -> None:
    refusal = {"error": {"message": "No.", "code": code}}
    headers = {"retry-after": "7"}
    server = Server(lambda: httpx.Response(status, json=refusal, headers=headers))
    with server.client() as client, pytest.raises(ChatError, match=rf"^No\. .*{advice}"):
        list(client.ask("?"))


@pytest.mark.parametrize(
    ("name", "part", "kind"),
    [
        ("picture.webp", "image_url", "image/webp"),
        ("picture.gif", "image_url", "image/gif"),
        ("film.mp4", "video_url", "video/mp4"),
        ("film.webm", "video_url", "video/webm"),
    ],
)
def test_a_file_is_sent_before_its_question(
    tmp_path: Path, name: str, part: str, kind: str
) -> None:
    path = tmp_path / name
    path.write_bytes(b"RIFF")
    server = Server(lambda: httpx.Response(200, content=events("A circle.")))
    with server.client() as client:
        list(client.ask("What is this?", [path]))
    file, text = server.bodies[0]["messages"][0]["content"]
    data = base64.b64encode(b"RIFF").decode()
    assert file == {"type": part, part: {"url": f"data:{kind};base64,{data}"}}
    assert text == {"type": "text", "text": "What is this?"}


def test_the_next_question_carries_the_conversation() -> None:
    server = Server(
        lambda: httpx.Response(200, content=events("Red.")),
        lambda: httpx.Response(200, content=events("Round.")),
    )
    with server.client() as client:
        list(client.ask("Colour?"))
        list(client.ask("Form?"))
    roles = [(m["role"], m["content"]) for m in server.bodies[1]["messages"]]
    assert [role for role, _ in roles] == ["user", "assistant", "user"]
    assert roles[1][1] == "Red."


def test_a_refused_question_is_the_servers_sentence_and_not_remembered() -> None:
    refusal = {"error": {"message": "the prompt is too long", "code": "context_length_exceeded"}}
    server = Server(
        lambda: httpx.Response(400, json=refusal),
        lambda: httpx.Response(200, content=events("Yes.")),
    )
    with server.client() as client:
        with pytest.raises(ChatError, match=r"^the prompt is too long Start a new conversation"):
            list(client.ask("..."))
        list(client.ask("Shorter?"))
    assert len(server.bodies[1]["messages"]) == 1


def test_an_error_inside_the_stream_is_the_servers_sentence() -> None:
    content = b'data: {"error": {"message": "a step failed"}}\n\n'
    with (
        Server(lambda: httpx.Response(200, content=content)).client() as client,
        pytest.raises(ChatError, match=r"^a step failed$"),
    ):
        list(client.ask("?"))


def test_a_stream_that_breaks_off_is_an_error() -> None:
    with (
        Server(lambda: httpx.Response(200, content=events("A", done=False))).client() as client,
        pytest.raises(ChatError, match="before the answer was complete"),
    ):
        list(client.ask("?"))


def test_an_error_page_of_something_else_is_its_status() -> None:
    with (
        Server(lambda: httpx.Response(502, text="<html>")).client() as client,
        pytest.raises(ChatError, match="answered 502 Bad Gateway"),
    ):
        list(client.ask("?"))


def test_a_server_that_is_not_there_is_one_sentence() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused")

    with (
        ChatClient(URL, transport=httpx.MockTransport(refuse)) as client,
        pytest.raises(ChatError, match=f"no answer from {URL} .*triton-vlm serve"),
    ):
        list(client.ask("?"))


def test_a_picture_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with (
        Server().client() as client,
        pytest.raises(ChatError, match=r"missing\.png cannot be read"),
    ):
        list(client.ask("?", [tmp_path / "missing.png"]))
