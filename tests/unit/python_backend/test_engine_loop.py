"""Every request gets exactly one final answer, whatever happens; nothing here waits for a clock."""

from __future__ import annotations

from threading import Event, Thread

import pytest
from fake_runtime import FakeRuntime, fake_engine, fake_request, scripted

from python_backend.engine_loop import EngineLoop
from python_backend.errors import EngineError, OverloadedError, RequestCancelledError
from python_backend.sampling_params import SamplingParams

TIMEOUT_S = 5.0
POISON = ord("#")


class RecordingSink:
    """Keeps what it is sent.

    Args:
        leaves_after: outputs after which the client is gone.
        gate: `send` waits for it.
        error: raised by every `send`.
    """

    def __init__(self, leaves_after=None, gate=None, error=None):
        self.outputs, self.errors = [], []
        self._leaves_after, self._gate, self._error = leaves_after, gate, error
        self.entered, self.first, self.final = Event(), Event(), Event()

    def send(self, output):
        self.entered.set()
        if self._gate is not None:
            assert self._gate.wait(TIMEOUT_S)
        assert not self.final.is_set(), "an output after the final answer"
        self.outputs.append(output)
        self.first.set()
        if output.is_last:
            self.final.set()
        if self._error is not None:
            raise self._error
        return self._leaves_after is None or len(self.outputs) < self._leaves_after

    def fail(self, error):
        assert not self.final.is_set(), "two final answers"
        self.errors.append(error)
        self.final.set()

    @property
    def text(self):
        assert self.final.wait(TIMEOUT_S)
        assert self.errors == []
        return "".join(output.text for output in self.outputs)

    @property
    def error(self):
        assert self.final.wait(TIMEOUT_S)
        (error,) = self.errors
        return error


@pytest.fixture
def start():
    """Starts loops, and ends them after the test."""
    loops = []

    def make(script=None, *, on_broken=None, poison=POISON, **limits):
        runtime = FakeRuntime(scripted(script) if script else None, poison=poison)
        loop = EngineLoop(fake_engine(runtime, **limits), on_broken)
        loop.runtime = runtime
        loops.append(loop)
        return loop

    yield make
    for loop in loops:
        loop.close(TIMEOUT_S)


def _submit(loop, request_id, prompt="Q", sink=None, **params):
    sink = sink or RecordingSink()
    params = SamplingParams(**{"temperature": 0.0, **params})
    loop.submit(fake_request(request_id, prompt, params), sink)
    return sink


def test_answer_arrives_token_by_token_and_its_last_output_is_last(start):
    sink = _submit(start({"Q": "Hello"}), "a")
    assert sink.text == "Hello"
    assert [output.is_last for output in sink.outputs] == [False] * (len(sink.outputs) - 1) + [True]


def test_requests_from_many_threads_each_get_one_final_answer(start):
    loop = start({f"<{i}>": f"answer {i}" for i in range(12)})
    sinks = [RecordingSink() for _ in range(12)]
    threads = [
        Thread(target=_submit, args=(loop, str(i), f"<{i}>", sink)) for i, sink in enumerate(sinks)
    ]
    for thread in threads:
        thread.start()
    assert [sink.text for sink in sinks] == [f"answer {i}" for i in range(12)]
    for thread in threads:
        thread.join(TIMEOUT_S)


def test_abort_answers_with_cancelled_and_frees_the_slot(start):
    loop = start(max_num_seqs=1)
    sink = _submit(loop, "a", "x", max_tokens=90, ignore_eos=True)
    found, done = [], Event()
    assert sink.first.wait(TIMEOUT_S)
    loop.abort("a", lambda was_there: (found.append(was_there), done.set()))
    assert done.wait(TIMEOUT_S)
    assert found == [not sink.outputs[-1].is_last]
    assert sink.final.wait(TIMEOUT_S)
    following = _submit(loop, "b", "x", max_tokens=1)
    assert following.final.wait(TIMEOUT_S)


def test_abort_of_a_waiting_request_is_its_answer(start):
    gate = Event()
    loop = start(max_num_seqs=1)
    _submit(loop, "a", "x", RecordingSink(gate=gate), max_tokens=90, ignore_eos=True)
    waiting = _submit(loop, "b", "x")
    loop.abort("b")
    gate.set()
    assert isinstance(waiting.error, RequestCancelledError)
    assert waiting.outputs == []


def test_abort_of_an_unknown_request_says_so(start):
    found, done = [], Event()
    start().abort("nobody", lambda was_there: (found.append(was_there), done.set()))
    assert done.wait(TIMEOUT_S)
    assert found == [False]


def test_client_that_leaves_ends_its_request(start):
    loop = start(max_num_seqs=1)
    sink = _submit(loop, "a", "x", RecordingSink(leaves_after=1), max_tokens=95, ignore_eos=True)
    assert sink.final.wait(TIMEOUT_S)
    following = _submit(loop, "b", "x", max_tokens=1)
    assert following.final.wait(TIMEOUT_S)


def test_sink_that_raises_ends_its_request_and_no_other(start):
    loop = start({"Q": "Hello", "R": "World"})
    broken = _submit(loop, "a", "Q", RecordingSink(error=ConnectionError("pipe")))
    other = _submit(loop, "b", "R")
    assert other.text == "World"
    assert broken.final.wait(TIMEOUT_S)


def test_failing_prompt_ends_alone(start):
    loop = start({"Q": "a long answer that goes on", "#": ""})
    good = _submit(loop, "good")
    assert good.first.wait(TIMEOUT_S)
    bad = _submit(loop, "bad", "#")
    assert isinstance(bad.error, EngineError)
    assert "poisoned" not in bad.error.message
    assert good.text == "a long answer that goes on"


def test_failing_decode_step_ends_the_requests_of_that_step(start):
    loop = start({"Q": "a#b", "R": "a longer answer"}, max_num_seqs=1)
    bad = _submit(loop, "bad")
    waiting = _submit(loop, "waiting", "R")
    assert isinstance(bad.error, EngineError)
    assert waiting.text == "a longer answer"


def test_second_failing_step_in_a_row_refuses_everything_and_reports_once(start):
    broken, calls = Event(), []
    loop = start({"#": "", "Q": "yes"}, on_broken=lambda: (calls.append(1), broken.set()))
    for i in range(2):
        assert isinstance(_submit(loop, f"bad{i}", "#").error, EngineError)
    assert broken.wait(TIMEOUT_S)
    for i in range(2):
        assert isinstance(_submit(loop, f"late{i}").error, OverloadedError)
    assert calls == [1]


def test_step_that_works_forgives_the_failing_one_before(start):
    calls = []
    loop = start({"#": "", "Q": "yes"}, on_broken=lambda: calls.append(1))
    for i in range(3):
        assert isinstance(_submit(loop, f"bad{i}", "#").error, EngineError)
        assert _submit(loop, f"good{i}").text == "yes"
    assert calls == []


def test_full_queue_is_an_overloaded_error(start):
    gate = Event()
    loop = start(max_num_seqs=1, max_waiting=1)
    # One thread puts all of them into the inbox; at most one runs and one waits.
    sinks = [
        _submit(loop, str(i), "x", RecordingSink(gate=gate), max_tokens=90, ignore_eos=True)
        for i in range(40)
    ]
    gate.set()
    for sink in sinks:
        assert sink.final.wait(TIMEOUT_S)
    refused = [sink for sink in sinks if sink.errors]
    assert all(isinstance(sink.error, OverloadedError) for sink in refused)
    assert len(refused) >= 1
    assert all(sink.outputs == [] for sink in refused)


def test_request_that_cannot_be_served_gets_the_reason(start):
    error = _submit(start(), "a", "x", n=5).error
    assert error.param == "n"


def test_second_request_of_the_same_id_is_refused_and_the_first_goes_on(start):
    loop = start({"Q": "Hello, how are you?"})
    first = _submit(loop, "a")
    assert first.first.wait(TIMEOUT_S)
    second = _submit(loop, "a")
    assert second.final.wait(TIMEOUT_S)
    assert first.text == "Hello, how are you?"


def test_close_finishes_what_was_handed_in_and_frees_the_engine(start):
    loop = start({"Q": "Hello"}, max_num_seqs=2)
    sinks = [_submit(loop, str(i)) for i in range(6)]
    loop.close(TIMEOUT_S)
    assert [sink.text for sink in sinks] == ["Hello"] * 6
    assert loop.runtime.closed.is_set()
    loop.close(TIMEOUT_S)


def test_request_after_close_is_refused(start):
    loop = start({"Q": "Hello"})
    loop.close(TIMEOUT_S)
    assert isinstance(_submit(loop, "late").error, OverloadedError)
    found = []
    loop.abort("late", found.append)
    assert found == [False]


def test_slow_client_gets_waiting_tokens_as_one_in_order_and_the_last_one_last(start):
    """While the sender is held, the engine finishes; then each choice comes in one piece."""
    gate = Event()
    loop = start({"Q": "Hello"})
    sink = RecordingSink(gate=gate)
    _submit(loop, "a", "Q", sink, n=2, logprobs=0)
    closer = Thread(target=loop.close)
    closer.start()
    assert loop.runtime.closed.wait(TIMEOUT_S)
    gate.set()
    closer.join(TIMEOUT_S)
    assert sink.final.is_set()
    assert [output.is_last for output in sink.outputs][-1]
    assert len(sink.outputs) <= 4  # what was on its way when the gate closed, and two pieces
    for index in range(2):
        parts = [output for output in sink.outputs if output.index == index]
        assert "".join(part.text for part in parts) == "Hello"
        tokens = [token for part in parts for token in part.token_ids]
        assert tokens == [*b"Hello", 256]
        assert sum(len(part.logprobs) for part in parts) == 6
        assert [part.finish_reason for part in parts][-1] == "stop"
        assert parts[-1].usage.completion_tokens == 6


def _lengths(params):
    """Tokens of each choice, offline."""
    engine, lengths = fake_engine(FakeRuntime()), [0] * params.n
    engine.add_request(fake_request("a", "x", params))
    while engine.has_unfinished:
        for output in engine.step():
            lengths[output.index] += len(output.token_ids)
    return lengths


def test_last_output_stays_last_when_its_choice_came_first(start):
    """It ends the response, so the other choice's tokens must have gone out before."""
    stop = {"max_tokens": 40, "stop_token_ids": tuple(range(0, 256, 16))}
    params = (SamplingParams(n=2, seed=seed, **stop) for seed in range(50))
    first_is_longer = next(p for p in params if _lengths(p)[0] > _lengths(p)[1] + 3)
    gate, sink, loop = Event(), RecordingSink(), start()
    blocker = _submit(loop, "blocker", "x", RecordingSink(gate=gate), max_tokens=1)
    assert blocker.entered.wait(TIMEOUT_S)
    loop.submit(fake_request("a", "x", first_is_longer), sink)
    closer = Thread(target=loop.close)
    closer.start()
    assert loop.runtime.closed.wait(TIMEOUT_S)
    gate.set()
    closer.join(TIMEOUT_S)
    assert [(o.index, o.finish_reason, o.is_last) for o in sink.outputs] == [
        (1, "stop", False),
        (0, "stop", True),
    ]
