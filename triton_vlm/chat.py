"""`triton-vlm chat`: ask a served model from the terminal and read the answer as it comes."""

from __future__ import annotations

import base64
import json
import mimetypes
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import httpx

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
TIMEOUT = httpx.Timeout(600.0, connect=5.0)
"""Between two tokens; a long queue counts as well."""

Message = dict[str, Any]


class ChatError(Exception):
    """The question was not answered; the message is one sentence."""


class ChatClient:
    """One conversation with a server that speaks OpenAI's chat API."""

    def __init__(
        self,
        base_url: str,
        *,
        model: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        api_key: str | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Describe the conversation; nothing is sent yet.

        Args:
            base_url: the server's address, with `/v1`.
            model: id of the model, None for the first one served.
            max_tokens: longest answer, None for the server's default.
            temperature: 0 always answers the same, None for the server's default.
            api_key: what the server asks for, None for a server that asks for nothing.
            transport: what carries the requests, None for the network.
        """
        self._url = base_url.rstrip("/")
        self._model = model
        options = {"max_completion_tokens": max_tokens, "temperature": temperature}
        self._options = {key: value for key, value in options.items() if value is not None}
        self._messages: list[Message] = []
        # A web proxy from the environment is not for this machine's own addresses.
        trust_env = urlsplit(self._url).hostname not in LOOPBACK_HOSTS
        headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        self._client = httpx.Client(
            headers=headers, timeout=TIMEOUT, trust_env=trust_env, transport=transport
        )

    def ask(self, question: str, images: Sequence[Path] = ()) -> Iterator[str]:
        """Ask in the course of the conversation; the answer's text as it comes.

        Args:
            question: what to ask.
            images: picture files the question is about.

        Raises:
            ChatError: an image cannot be read, or the server did not answer.
        """
        parts: list[Message] = [_image_part(path) for path in images]
        parts.append({"type": "text", "text": question})
        message = {"role": "user", "content": parts}
        answer = ""
        for delta in self._stream([*self._messages, message]):
            answer += delta
            yield delta
        self._messages += [message, {"role": "assistant", "content": answer}]

    def close(self) -> None:
        """Close the connection; twice is allowed."""
        self._client.close()

    def __enter__(self) -> ChatClient:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _stream(self, messages: Sequence[Message]) -> Iterator[str]:
        try:
            body = {
                "model": self._model or self._first_model(),
                "messages": messages,
                "stream": True,
                **self._options,
            }
            url = f"{self._url}/chat/completions"
            with self._client.stream("POST", url, json=body) as response:
                if response.is_error:
                    response.read()
                    raise ChatError(_error_sentence(response))
                yield from _deltas(response.iter_lines())
        except httpx.TransportError as exc:
            raise ChatError(f"no answer from {self._url}: {exc} (is it serving?)") from exc
        except httpx.InvalidURL as exc:
            raise ChatError(f"{self._url} is not an address: {exc}") from exc

    def _first_model(self) -> str:
        response = self._client.get(f"{self._url}/models")
        if response.is_error:
            raise ChatError(_error_sentence(response))
        models = response.json()["data"]
        if not models:
            raise ChatError(f"{self._url} serves no model")
        self._model = str(models[0]["id"])
        return self._model


def _image_part(path: Path) -> Message:
    try:
        data = base64.b64encode(path.read_bytes()).decode("ascii")
    except OSError as exc:
        raise ChatError(f"{path} cannot be read: {exc.strerror}") from exc
    kind = mimetypes.guess_type(path.name)[0] or "image/png"
    return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data}"}}


def _deltas(lines: Iterator[str]) -> Iterator[str]:
    """The text of server-sent events; a cut-off stream is an error."""
    for line in lines:
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        event = json.loads(data)
        if "error" in event:
            raise ChatError(str(event["error"].get("message", event["error"])))
        for choice in event.get("choices", []):
            text = choice.get("delta", {}).get("content")
            if text:
                yield text
    raise ChatError("the connection ended before the answer was complete")


def _error_sentence(response: httpx.Response) -> str:
    """What the server says is wrong, or its status when it does not say."""
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"{response.url} answered {response.status_code} {response.reason_phrase}"
