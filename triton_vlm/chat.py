"""`triton-vlm chat`: ask a served model and read the answer as it comes."""

from __future__ import annotations

import base64
import json
import mimetypes
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import httpx

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
TIMEOUT = httpx.Timeout(600.0, connect=5.0)
"""Between two tokens; a long queue counts as well."""

Message = dict[str, Any]
Chunks = Generator[dict[str, Any], None, None]


class ChatError(Exception):
    """The question was not answered; the message says why and what to do."""


class Answer:
    """An answer that is on its way: iterate over it for its text, piece by piece.

    Attributes:
        text: what has come so far.
        usage: OpenAI's usage object, None until the end or if the server does not tell.
    """

    def __init__(self, chunks: Chunks, on_end: Callable[[Answer], None]) -> None:
        """Describe the answer; the request is sent when the first piece is asked for.

        Args:
            chunks: OpenAI's chunks of a streamed answer.
            on_end: called once the answer is complete, or stopped after its first text.
        """
        self._chunks = chunks
        self._on_end = on_end
        self.text = ""
        self.usage: dict[str, Any] | None = None
        self._times: list[float] = []

    def __iter__(self) -> Generator[str, None, None]:
        """The text as it comes; closing the iterator stops the answer and keeps what came.

        Raises:
            ChatError: the server did not answer, or not to the end.
        """
        self._times = [time.perf_counter()]
        try:
            with closing(self._chunks):
                for chunk in self._chunks:
                    self.usage = chunk.get("usage") or self.usage
                    for choice in chunk.get("choices", []):
                        self._times.append(time.perf_counter())
                        if text := choice.get("delta", {}).get("content"):
                            self.text += text
                            yield text
        except (GeneratorExit, KeyboardInterrupt):
            if self.text:
                self._on_end(self)
            raise
        self._on_end(self)

    def facts(self) -> str:
        """Times and tokens, in words; empty if nothing came."""
        if len(self._times) < 2:
            return ""
        sent, first, last = self._times[0], self._times[1], self._times[-1]
        facts = [f"{first - sent:.2f} s to the first token"]
        if self.usage is None:
            return facts[0]
        usage = self.usage
        if usage["completion_tokens"] > 1 and last > first:
            facts.append(f"{(usage['completion_tokens'] - 1) / (last - first):.1f} tokens/s")
        details = usage.get("prompt_tokens_details") or {}
        media = "".join(
            f", {count:,} of them {name}"
            for name, field in (("pictures", "image_tokens"), ("videos", "video_tokens"))
            if (count := details.get(field))
        )
        facts.append(f"{usage['prompt_tokens']:,} prompt tokens{media}")
        facts.append(f"{usage['completion_tokens']:,} answer tokens")
        return " · ".join(facts)


class ChatClient:
    """One conversation with a server that speaks OpenAI's chat API."""

    def __init__(
        self,
        base_url: str,
        *,
        model: str | None = None,
        api_key: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Describe the conversation; nothing is sent yet.

        Args:
            base_url: the server's address, with `/v1`.
            model: id of the model, None for the first one served.
            api_key: what the server asks for, None if it asks for nothing.
            max_tokens: longest answer, None for the server's default.
            temperature: 0 always answers the same, None for the server's default.
            transport: what carries the requests, None for the network.
        """
        self._url = base_url.rstrip("/")
        self._model = model
        options = {"max_completion_tokens": max_tokens, "temperature": temperature}
        self._options = {key: value for key, value in options.items() if value is not None}
        self._messages: list[Message] = []
        self._client = httpx.Client(
            headers={"authorization": f"Bearer {api_key}"} if api_key else None,
            timeout=TIMEOUT,
            # A web proxy from the environment is not for this machine's own addresses.
            trust_env=urlsplit(self._url).hostname not in LOOPBACK_HOSTS,
            transport=transport,
        )

    def ask(self, question: str, files: Sequence[Path] = ()) -> Answer:
        """Ask in the course of the conversation, which an answered question becomes part of.

        Args:
            question: what to ask.
            files: pictures and videos the question is about.

        Raises:
            ChatError: a file cannot be read.
        """
        parts: list[Message] = [_media_part(path) for path in files]
        parts.append({"type": "text", "text": question})
        message = {"role": "user", "content": parts}

        def remember(answer: Answer) -> None:
            self._messages += [message, {"role": "assistant", "content": answer.text}]

        return Answer(self._chunks([*self._messages, message]), remember)

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

    def _chunks(self, messages: Sequence[Message]) -> Chunks:
        try:
            body = {
                "model": self._model or self._first_model(),
                "messages": messages,
                "stream": True,
                "stream_options": {"include_usage": True},
                **self._options,
            }
            url = f"{self._url}/chat/completions"
            with self._client.stream("POST", url, json=body) as response:
                if response.is_error:
                    response.read()
                    raise ChatError(self._explanation(response))
                yield from _events(response.iter_lines())
        except httpx.ConnectError as exc:
            raise ChatError(
                f"no answer from {self._url} ({exc}): start a server with `triton-vlm serve`, or "
                "say with --url where it is"
            ) from exc
        except httpx.TransportError as exc:
            raise ChatError(f"the connection to {self._url} broke ({exc}): ask again") from exc
        except httpx.InvalidURL as exc:
            raise ChatError(f"{self._url} is not an address: {exc}") from exc

    def _first_model(self) -> str:
        models = self._model_ids()
        if not models:
            raise ChatError(f"{self._url} serves no model yet: ask again when it has loaded one")
        self._model = models[0]
        return self._model

    def _model_ids(self) -> list[str]:
        response = self._client.get(f"{self._url}/models")
        if response.is_error:
            raise ChatError(self._explanation(response))
        return [str(model["id"]) for model in response.json()["data"]]

    def _explanation(self, response: httpx.Response) -> str:
        """What the server says is wrong, or its status when it does not say, and what to do."""
        try:
            error = response.json()["error"]
            message, code = str(error["message"]), error.get("code")
        except (ValueError, KeyError, TypeError):
            status = f"{response.status_code} {response.reason_phrase}"
            message, code = f"{response.url} answered {status}", None
        return " ".join(filter(None, (message, self._advice(response, code))))

    def _advice(self, response: httpx.Response, code: str | None) -> str:
        if code == "model_not_found":
            return f"--model takes one of: {', '.join(self._model_ids())}."
        if code == "context_length_exceeded":
            return "Start a new conversation, or ask with fewer or smaller pictures."
        if response.status_code == 401:
            return "Give the server's key with --api-key or in TRITON_VLM_API_KEY."
        if response.status_code in (429, 503):
            return f"Ask again in {response.headers.get('retry-after', 'a few')} seconds or later."
        return ""


def _media_part(path: Path) -> Message:
    try:
        data = base64.b64encode(path.read_bytes()).decode("ascii")
    except OSError as exc:
        raise ChatError(f"{path} cannot be read: {exc.strerror}") from exc
    kind = mimetypes.guess_type(path.name)[0] or "image/png"
    part = "video_url" if kind.startswith("video/") else "image_url"
    return {"type": part, part: {"url": f"data:{kind};base64,{data}"}}


def _events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """The chunks in server-sent events; a cut-off stream is an error."""
    for line in lines:
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        event: dict[str, Any] = json.loads(data)
        if "error" in event:
            raise ChatError(str(event["error"].get("message", event["error"])))
        yield event
    raise ChatError("the connection ended before the answer was complete: ask again")
