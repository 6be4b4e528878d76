"""Requests to any OpenAI-compatible server, through the `openai` client, and what came back when."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import openai

from benchmarks.summary import RequestTiming
from benchmarks.workload import Messages

_TIMEOUT_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One question.

    Attributes:
        messages: the conversation.
        num_tokens: how long the answer is.
        start_s: when it is sent, from the start of all.
    """

    messages: Messages
    num_tokens: int
    start_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What an engine made of a request.

    Attributes:
        timing: from the request's own start.
        text: without special tokens.
        token_ids: the same as tokens, None where the engine does not tell.
    """

    timing: RequestTiming
    text: str
    token_ids: Sequence[int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Where to ask.

    Attributes:
        base_url: what OpenAI clients call it.
        model: name of the model there.
        extra_body: fields of every request beside the usual ones, such as that the end-of-sequence
            token does not end an answer.
    """

    base_url: str
    model: str
    extra_body: Mapping[str, Any] = field(default_factory=lambda: {"ignore_eos": True})

    def ask(self, requests: Sequence[Request]) -> list[Answer]:
        """Send each request when its time comes, and wait for all answers.

        Raises:
            RuntimeError: an answer has another length than asked for.
            openai.OpenAIError: the server refuses a request or does not answer.
        """
        return asyncio.run(self._ask_all(requests))

    async def _ask_all(self, requests: Sequence[Request]) -> list[Answer]:
        async with openai.AsyncOpenAI(
            base_url=self.base_url,
            api_key="unused",
            max_retries=0,
            timeout=_TIMEOUT_S,
            # No proxy from the environment for an address on this machine.
            http_client=openai.DefaultAsyncHttpxClient(trust_env=False, timeout=_TIMEOUT_S),
        ) as client:
            return await asyncio.gather(*(self._ask(client, request) for request in requests))

    async def _ask(self, client: openai.AsyncOpenAI, request: Request) -> Answer:
        await asyncio.sleep(request.start_s)
        start = time.perf_counter()
        stream = await client.chat.completions.create(  # type: ignore[call-overload]  # plain dicts
            model=self.model,
            messages=request.messages,
            max_tokens=request.num_tokens,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            extra_body=dict(self.extra_body),
        )
        first_s = last_s = None
        num_received = num_prompt_tokens = 0
        texts: list[str] = []
        token_ids: list[int] = []
        async for chunk in stream:
            if chunk.choices:
                last_s = time.perf_counter() - start
                text = chunk.choices[0].delta.content or ""
                # Some servers begin with an empty chunk before there is a token.
                if text and first_s is None:
                    first_s = last_s
                texts.append(text)
                token_ids += getattr(chunk.choices[0], "token_ids", None) or ()
            if chunk.usage is not None:
                num_received = chunk.usage.completion_tokens
                num_prompt_tokens = chunk.usage.prompt_tokens
        if first_s is None or last_s is None or num_received != request.num_tokens:
            raise RuntimeError(
                f"asked for {request.num_tokens} tokens, the server sent {num_received}"
            )
        timing = RequestTiming(
            ttft_s=first_s,
            total_s=last_s,
            num_tokens=num_received,
            num_prompt_tokens=num_prompt_tokens,
        )
        return Answer(timing=timing, text="".join(texts), token_ids=token_ids or None)
