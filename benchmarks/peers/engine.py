"""What a peer is while it runs: something that answers requests, over HTTP or in its own process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import httpx

from benchmarks.client import Answer, Request, Server
from benchmarks.summary import RequestTiming
from triton_vlm.child_process import TAIL_LINES, ChildProcess
from triton_vlm.launch_error import LaunchError
from triton_vlm.ports import LOOPBACK, free_ports
from triton_vlm.readiness import wait_until
from triton_vlm.stack import ServingStack

_READY_TIMEOUT_S = 900.0
_STOP_GRACE_S = 20.0


class Engine(ABC):
    """A running peer. Ends with `stop`."""

    @property
    @abstractmethod
    def groups(self) -> Collection[int]:
        """The process groups of all its processes."""

    @abstractmethod
    def ask(self, requests: Sequence[Request]) -> list[Answer]:
        """Answer all requests, in flight together.

        Raises:
            Exception: of any kind; the engine cannot be used any more.
        """

    @abstractmethod
    def stop(self) -> None:
        """End it; twice is allowed."""


class StackEngine(Engine):
    """The project's own stack, proxy and Triton."""

    def __init__(self, stack: ServingStack) -> None:
        self._stack = stack
        stack.start()
        (model,) = (model["id"] for model in stack.proxy.models())
        self._server = Server(base_url=stack.base_url, model=model)

    @property
    def groups(self) -> Collection[int]:
        return self._stack.triton.process.pid, self._stack.proxy.process.pid

    def ask(self, requests: Sequence[Request]) -> list[Answer]:
        answers = self._server.ask(requests)
        self._stack.check()
        return answers

    def stop(self) -> None:
        self._stack.stop()


class ServerEngine(Engine):
    """A peer's OpenAI-compatible server.

    Args:
        name: for messages and for its log.
        argv: from the port to the command line.
        env: variables on top of this program's.
        model: its name in requests.
        extra_body: see `Server`.
        logs: folder for its log.

    Raises:
        LaunchError: it ended, or was not ready in time.
    """

    def __init__(
        self,
        name: str,
        argv: Callable[[int], Sequence[str | Path]],
        *,
        env: Mapping[str, str],
        model: str,
        extra_body: Mapping[str, Any],
        logs: Path,
    ) -> None:
        (port,) = free_ports(1)
        self._server = Server(
            base_url=f"http://{LOOPBACK}:{port}/v1", model=model, extra_body=extra_body
        )
        self._process = ChildProcess(
            name, argv(port), env={**os.environ, **env}, log_path=logs / f"{name}.log"
        )
        self._process.start()
        try:
            wait_until(self._is_ready, self._process, timeout_s=_READY_TIMEOUT_S)
        except BaseException:
            self.stop()
            raise

    def _is_ready(self) -> bool:
        url = self._server.base_url.removesuffix("/v1") + "/health"
        try:
            return httpx.get(url, trust_env=False, timeout=5.0).is_success
        except httpx.TransportError:
            return False

    @property
    def groups(self) -> Collection[int]:
        return (self._process.pid,)

    def ask(self, requests: Sequence[Request]) -> list[Answer]:
        self._process.check()
        return self._server.ask(requests)

    def stop(self) -> None:
        self._process.stop(_STOP_GRACE_S)


class ProgramEngine(Engine):
    """A library in a program of its own that takes and answers lines of JSON: see `programs/lines.py`.

    Args:
        name: for messages and for its log.
        argv: the command line.
        env: variables on top of this program's.
        prompt: from messages to the text that the model sees, with the picture's placeholder.
        text: from token ids to text.
        logs: folder for its log.

    Raises:
        LaunchError: it ended before it was ready.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str],
        prompt: Callable[[Sequence[Mapping[str, Any]]], str],
        text: Callable[[Sequence[int]], str],
        logs: Path,
    ) -> None:
        self._name, self._prompt, self._text = name, prompt, text
        self._log_path = logs / f"{name}.log"
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [str(argument) for argument in argv],
                env={**os.environ, **env},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        try:
            self._receive()
        except BaseException:
            self.stop()
            raise

    @property
    def groups(self) -> Collection[int]:
        return (self._process.pid,)

    def ask(self, requests: Sequence[Request]) -> list[Answer]:
        """Answer all requests; they start together, whatever their `start_s`."""
        line = [
            {
                "messages": request.messages,
                "prompt": self._prompt(request.messages),
                "num_tokens": request.num_tokens,
            }
            for request in requests
        ]
        stdin = _open(self._process.stdin)
        stdin.write(json.dumps(line) + "\n")
        stdin.flush()
        answers = [
            Answer(
                timing=RequestTiming(
                    ttft_s=answer["ttft_s"],
                    total_s=answer["total_s"],
                    num_tokens=len(answer["token_ids"]),
                    num_prompt_tokens=answer["num_prompt_tokens"],
                ),
                text=self._text(answer["token_ids"]),
                token_ids=answer["token_ids"],
            )
            for answer in self._receive()
        ]
        for request, answer in zip(requests, answers, strict=True):
            if answer.timing.num_tokens != request.num_tokens:
                raise RuntimeError(
                    f"asked for {request.num_tokens} tokens, got {answer.timing.num_tokens}"
                )
        return answers

    def _receive(self) -> Any:
        line = _open(self._process.stdout).readline()
        if not line:
            text = self._log_path.read_text(encoding="utf-8", errors="replace")
            tail = "\n".join(text.splitlines()[-TAIL_LINES:])
            raise LaunchError(f"{self._name} ended", log_path=self._log_path, log_tail=tail)
        return json.loads(line)

    def stop(self) -> None:
        with contextlib.suppress(OSError):  # it may have ended by itself
            _open(self._process.stdin).close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_GRACE_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def _open(pipe: IO[str] | None) -> IO[str]:
    """A pipe that was asked for, so it is there."""
    assert pipe is not None
    return pipe
