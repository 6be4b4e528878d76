"""The served stack, proxy and Triton with its stages, asked by the openai client over loopback."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import openai

from benchmarks.processes import CpuMeter, MemoryMeter, command_of
from benchmarks.summary import Burst, RequestTiming
from benchmarks.workload import Load, Messages, Workload
from triton_vlm.stack import ServingStack

_TIMEOUT_S = 1800.0


class ServedEngine:
    """A running stack and what the client sees of it."""

    def __init__(self, stack: ServingStack, workload: Workload) -> None:
        """Take a stack that has started.

        Args:
            stack: its `proxy` must serve exactly one model.
            workload: makes the requests.
        """
        self._stack = stack
        self._workload = workload
        (self._model,) = (model["id"] for model in stack.proxy.models())

    @property
    def groups(self) -> tuple[int, int]:
        """The process groups of all server processes."""
        return self._stack.triton.process.pid, self._stack.proxy.process.pid

    def run(self, load: Load, repeat: int) -> Burst:
        """Send one burst and wait for all answers."""
        conversations = self._workload.conversations(load, repeat)
        with CpuMeter(self.groups, time.perf_counter) as cpu:
            start = time.perf_counter()
            answers = asyncio.run(self._ask_all(conversations, load.num_output_tokens))
            wall_s = time.perf_counter() - start
        self._stack.check()
        return Burst(
            requests=[timing for timing, _ in answers],
            wall_s=wall_s,
            cpu_s=cpu.cpu_s,
            foreign_cpu_share=cpu.foreign_share,
            texts=[text for _, text in answers],
        )

    def peak_memory(self, load: Load, repeat: int) -> dict[str, int]:
        """Memory of each server process at its highest sum, in a burst whose times do not count.

        Returns:
            Name of the process to bytes; stages that run several times are numbered.
        """
        with MemoryMeter(self.groups) as memory:
            self.run(load, repeat)
        sizes: dict[str, int] = {}
        for pid, num_bytes in sorted(memory.peak.items()):
            name = self._name(pid)
            number = sum(other.partition(" ")[0] == name for other in sizes)
            sizes[f"{name} {number + 1}" if number else name] = num_bytes
        return sizes

    def _name(self, pid: int) -> str:
        if pid == self._stack.triton.process.pid:
            return "tritonserver"
        if pid == self._stack.proxy.process.pid:
            return "proxy"
        # A stub's first argument is its model's file: <model>/1/model.py.
        folder = Path(command_of(pid)[1]).parent.parent.name
        return folder.rpartition("-")[2] or "other"

    async def _ask_all(
        self, conversations: Sequence[Messages], num_tokens: int
    ) -> list[tuple[RequestTiming, str]]:
        async with openai.AsyncOpenAI(
            base_url=self._stack.base_url,
            api_key="unused",
            max_retries=0,
            timeout=_TIMEOUT_S,
            # No proxy from the environment for an address on this machine.
            http_client=openai.DefaultAsyncHttpxClient(trust_env=False, timeout=_TIMEOUT_S),
        ) as client:
            tasks = [self._ask(client, messages, num_tokens) for messages in conversations]
            return await asyncio.gather(*tasks)

    async def _ask(
        self, client: openai.AsyncOpenAI, messages: Messages, num_tokens: int
    ) -> tuple[RequestTiming, str]:
        start = time.perf_counter()
        stream = await client.chat.completions.create(  # type: ignore[call-overload]  # plain dicts
            model=self._model,
            messages=messages,
            max_tokens=num_tokens,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        first_s = last_s = None
        num_received = num_prompt_tokens = 0
        texts: list[str] = []
        async for chunk in stream:
            if chunk.choices:
                # The server sends its first chunk with the first token, even if that has no text.
                last_s = time.perf_counter() - start
                first_s = last_s if first_s is None else first_s
                texts.append(chunk.choices[0].delta.content or "")
            if chunk.usage is not None:
                num_received = chunk.usage.completion_tokens
                num_prompt_tokens = chunk.usage.prompt_tokens
        if first_s is None or last_s is None or num_received != num_tokens:
            raise RuntimeError(f"asked for {num_tokens} tokens, the server sent {num_received}")
        timing = RequestTiming(
            ttft_s=first_s,
            total_s=last_s,
            num_tokens=num_received,
            num_prompt_tokens=num_prompt_tokens,
        )
        return timing, "".join(texts)
