from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from triton_vlm.chat import ChatClient
from triton_vlm.conversation import converse

USAGE = {"prompt_tokens": 7, "completion_tokens": 2}


def chunk(text: str) -> bytes:
    return f"data: {json.dumps({'choices': [{'delta': {'content': text}}]})}\n\n".encode()


def whole(text: str) -> Iterator[bytes]:
    yield chunk(text)
    yield f"data: {json.dumps({'choices': [], 'usage': USAGE})}\n\ndata: [DONE]\n\n".encode()


def interrupted(text: str) -> Iterator[bytes]:
    """What a person sees who presses ctrl-C after `text`."""
    if text:
        yield chunk(text)
    raise KeyboardInterrupt


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Types `lines` to a server that gives `answers`; the bodies of the requests."""

    def talk_(lines: list[str], answers: list[Iterator[bytes]]) -> list[dict[str, Any]]:
        bodies: list[dict[str, Any]] = []

        def answer(request: httpx.Request) -> httpx.Response:
            bodies.append(json.loads(request.content))
            return httpx.Response(200, content=answers.pop(0))

        monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
        transport = httpx.MockTransport(answer)
        with ChatClient("http://server/v1", model="m", transport=transport) as client:
            converse(client, [])
        return bodies

    return talk_


def test_answers_and_what_is_said_about_them_are_apart(
    talk: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    talk(["Colour?"], [whole("Red.")])
    captured = capsys.readouterr()
    assert captured.out == "Red.\n"
    assert "7 prompt tokens · 2 answer tokens" in captured.err


def test_a_stopped_answer_ends_neither_the_conversation_nor_its_memory(
    talk: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    bodies = talk(["Colour?", "Form?"], [interrupted("Re"), whole("Round.")])
    assert [m["content"] for m in bodies[1]["messages"] if m["role"] == "assistant"] == ["Re"]
    captured = capsys.readouterr()
    assert captured.out == "Re\nRound.\n"
    assert "Stopped." in captured.err


def test_pictures_wait_for_a_question_that_is_answered(talk: Any, tmp_path: Path) -> None:
    picture, film = tmp_path / "a b.png", tmp_path / "film.mp4"
    picture.write_bytes(b"picture")
    film.write_bytes(b"film")
    lines = [f"/image {picture}", f"/video {film}", "Colour?", "Colour?", "Form?"]
    bodies = talk(lines, [interrupted(""), whole("Red."), whole("Round.")])
    sent = [[part["type"] for part in body["messages"][-1]["content"]] for body in bodies]
    assert sent == [*[["image_url", "video_url", "text"]] * 2, ["text"]]


def test_a_picture_that_is_not_there_is_said_at_once(
    talk: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    bodies = talk(["/image missing.png", "Hello?"], [whole("Hi.")])
    assert capsys.readouterr().err.startswith("Error: missing.png is not a file\n")
    assert len(bodies[0]["messages"][0]["content"]) == 1
