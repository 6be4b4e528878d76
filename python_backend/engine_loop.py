"""`EngineLoop`: the one thread that owns an engine, and the one that sends its answers.

Other threads only put messages into queues, so nothing is shared and nothing is locked. Answers
leave through a second thread, because sending costs as much as a token of a small model (measured:
0.4 ms per Triton response; sent from the engine thread it doubled the time per token of 64
streams). When that thread falls behind, the tokens of a choice that wait are sent as one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Protocol

from python_backend.engine import Engine
from python_backend.errors import (
    EngineError,
    OverloadedError,
    RequestCancelledError,
    VlmError,
)
from python_backend.request import GenerationRequest, RequestFailure, RequestOutput

_LOG = logging.getLogger(__name__)
_MAX_FAILED_STEPS = 2
"""Failing steps in a row after which the engine is taken to be broken."""


class Sink(Protocol):
    """Where the answers of one request go. Called from the sender thread only.

    A request that comes when the loop has ended is refused in the thread that hands it in.
    """

    def send(self, output: RequestOutput) -> bool:
        """Pass an output on; False if the caller is gone and the request should end."""

    def fail(self, error: VlmError) -> None:
        """Answer with an error; the last call for this request."""


@dataclass(frozen=True, slots=True)
class _Submit:
    request: GenerationRequest
    sink: Sink


@dataclass(frozen=True, slots=True)
class _Abort:
    request_id: str
    on_done: Callable[[bool], None] | None


_Message = _Submit | _Abort | None
_Answer = tuple[Sink, RequestOutput | VlmError] | None


class EngineLoop:
    """Runs an engine until `close`.

    Args:
        engine: owned by this object from now on.
        on_broken: called once, from the engine thread, when steps fail again and again.
    """

    def __init__(self, engine: Engine, on_broken: Callable[[], None] | None = None) -> None:
        self._engine = engine
        self._on_broken = on_broken
        self._inbox: SimpleQueue[_Message] = SimpleQueue()
        self._answers: SimpleQueue[_Answer] = SimpleQueue()
        self._sinks: dict[str, Sink] = {}
        self._failed_steps = 0
        self._closing = False
        self._engine_thread = Thread(target=self._run, name="engine", daemon=True)
        self._sender_thread = Thread(target=self._send_answers, name="sender", daemon=True)
        self._engine_thread.start()
        self._sender_thread.start()

    # --- any thread ----------------------------------------------------------------------------

    def submit(self, request: GenerationRequest, sink: Sink) -> None:
        """Hand in a request; everything that follows, errors too, goes to `sink`."""
        self._put(_Submit(request, sink))

    def abort(self, request_id: str, on_done: Callable[[bool], None] | None = None) -> None:
        """Drop a request. `on_done` is told, from the engine thread, whether it was there."""
        self._put(_Abort(request_id, on_done))

    def _put(self, message: _Message) -> None:
        self._inbox.put(message)
        if not self._engine_thread.is_alive():  # nobody else will look
            self._refuse_messages()

    def close(self, timeout_s: float | None = None) -> None:
        """Stop admitting, finish what runs, free the engine. Safe to call twice."""
        self._inbox.put(None)
        self._engine_thread.join(timeout_s)
        self._sender_thread.join(timeout_s)
        if not self._engine_thread.is_alive():
            self._refuse_messages()

    def _refuse_messages(self) -> None:
        """Answer what came after the last step."""
        while True:
            try:
                message = self._inbox.get_nowait()
            except Empty:
                return
            if isinstance(message, _Submit):
                message.sink.fail(_shutting_down())
            elif isinstance(message, _Abort) and message.on_done is not None:
                message.on_done(False)

    # --- engine thread -------------------------------------------------------------------------

    def _run(self) -> None:
        while not (self._closing and not self._engine.has_unfinished):
            self._take_messages()
            if self._engine.has_unfinished:
                self._step()
        self._engine.close()
        self._answers.put(None)

    def _take_messages(self) -> None:
        """Everything in the inbox; waits for the first message when there is nothing to compute."""
        wait = not self._engine.has_unfinished and not self._closing
        while True:
            try:
                message = self._inbox.get(block=wait)
            except Empty:
                return
            wait = False
            if message is None:
                self._closing = True
            elif isinstance(message, _Abort):
                self._abort(message)
            else:
                self._admit(message)

    def _admit(self, message: _Submit) -> None:
        request_id, sink = message.request.request_id, message.sink
        try:
            if self._closing:
                raise _shutting_down()
            if self._failed_steps >= _MAX_FAILED_STEPS:
                raise OverloadedError("the engine is failing and is being restarted; retry later")
            if request_id in self._sinks:
                raise EngineError(f"request id {request_id} is already running")
            self._engine.add_request(message.request)
        except VlmError as error:
            self._answers.put((sink, error))
        except Exception:
            _LOG.exception("request %s could not be added", request_id)
            self._answers.put((sink, EngineError("the engine could not take the request")))
        else:
            self._sinks[request_id] = sink

    def _abort(self, message: _Abort) -> None:
        found = self._engine.abort(message.request_id)
        sink = self._sinks.pop(message.request_id, None)
        if sink is not None:
            error = RequestCancelledError("the request was cancelled")
            self._answers.put((sink, error))
        if message.on_done is not None:
            message.on_done(found)

    def _step(self) -> None:
        try:
            outputs = self._engine.step()
        except Exception:
            self._fail_step()
            return
        self._failed_steps = 0
        for output in outputs:
            if isinstance(output, RequestFailure):
                self._answers.put((self._sinks.pop(output.request_id), output.error))
                continue
            take = self._sinks.pop if output.is_last else self._sinks.__getitem__
            self._answers.put((take(output.request_id), output))

    def _fail_step(self) -> None:
        """The rows of a failed step may be half written: its requests end, the others go on."""
        _LOG.exception("an engine step failed")
        self._failed_steps += 1
        for request_id in self._engine.abort_step():
            error = EngineError("the engine failed while computing the answer")
            sink = self._sinks.pop(request_id, None)
            if sink is not None:
                self._answers.put((sink, error))
        if self._failed_steps == _MAX_FAILED_STEPS and self._on_broken is not None:
            self._on_broken()

    # --- sender thread -------------------------------------------------------------------------

    def _send_answers(self) -> None:
        open_ended = True
        while open_ended:
            batch = [self._answers.get()]
            while not self._answers.empty():
                batch.append(self._answers.get())
            open_ended = batch[-1] is not None
            for sink, answer in _coalesce([item for item in batch if item is not None]):
                self._send(sink, answer)

    def _send(self, sink: Sink, answer: RequestOutput | VlmError) -> None:
        try:
            if isinstance(answer, VlmError):
                sink.fail(answer)
            elif not sink.send(answer):
                self.abort(answer.request_id)
        except Exception:
            _LOG.exception("an answer could not be sent")
            if isinstance(answer, RequestOutput):
                self.abort(answer.request_id)


def _shutting_down() -> OverloadedError:
    return OverloadedError("the server is shutting down; retry in a moment")


def _coalesce(
    answers: list[tuple[Sink, RequestOutput | VlmError]],
) -> list[tuple[Sink, RequestOutput | VlmError]]:
    """Outputs of the same choice become one, in the place of the first; order is kept otherwise.

    A request's last output stays behind those of its other choices: it ends the response.
    """
    result: dict[tuple[int, int] | int, tuple[Sink, RequestOutput | VlmError]] = {}
    for position, (sink, answer) in enumerate(answers):
        if isinstance(answer, VlmError):
            result[position] = (sink, answer)
            continue
        key = (id(sink), answer.index)
        if key in result:
            earlier = result.pop(key)[1] if answer.is_last else result[key][1]
            assert isinstance(earlier, RequestOutput)
            answer = earlier.merge(answer)
        result[key] = (sink, answer)
    return list(result.values())
