"""Random traffic through the scheduler, with a cache that remembers whose token lies where."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from python_backend.errors import OverloadedError
from python_backend.scheduler import Choice, FinishReason, Request, Scheduler, StepPlan

MAX_MODEL_LEN = 24
STOP_TOKEN = 1


@dataclass(frozen=True)
class Visit:
    """One request of the random traffic.

    Attributes:
        arrival: step before which it comes.
        abort: step before which its client leaves, if it does.
        stop_at: output token that is a stop token, per choice.
        stop_string_at: output token after which a stop string ends the choice from outside.
        whole: the part of the prompt that must be computed in one step, if there is one.
        priority: who waits is admitted by it, then by arrival.
        max_chunk: tokens of the prompt computed in one step, at most.
    """

    arrival: int
    num_prompt: int
    max_tokens: int
    num_choices: int
    abort: int | None
    stop_at: tuple[int, ...]
    stop_string_at: int | None
    whole: tuple[int, int] | None
    priority: int
    max_chunk: int | None


@st.composite
def visits(draw):
    num_prompt = draw(st.integers(1, MAX_MODEL_LEN - 1))
    edges = st.lists(st.integers(0, num_prompt), min_size=2, max_size=2, unique=True)
    return Visit(
        arrival=draw(st.integers(0, 30)),
        num_prompt=num_prompt,
        max_tokens=draw(st.integers(1, MAX_MODEL_LEN - num_prompt)),
        num_choices=draw(st.integers(1, 3)),
        abort=draw(st.none() | st.integers(0, 50)),
        stop_at=draw(st.tuples(*[st.integers(1, 12)] * 3)),
        stop_string_at=draw(st.none() | st.integers(1, 8)),
        whole=draw(st.none() | edges.map(lambda pair: tuple(sorted(pair)))),
        priority=draw(st.integers(-2, 2)),
        max_chunk=draw(st.none() | st.integers(1, 5)),
    )


@dataclass
class Traffic:
    """Drives a scheduler and checks every step from outside.

    Attributes:
        rows: per cache row and position, (request, choice or None for the prompt, index) or None.
        prefilled: prompt tokens computed per request.
        admitted: requests that left the queue, in this order.
        outputs: tokens sampled per choice.
    """

    scheduler: Scheduler
    visits: list[Visit]
    rows: list[list[object]] = field(init=False)
    requests: dict[str, Request] = field(default_factory=dict)
    prefilled: dict[str, int] = field(default_factory=dict)
    admitted: list[str] = field(default_factory=list)
    outputs: dict[Choice, int] = field(default_factory=dict)
    added: list[str] = field(default_factory=list)
    aborted: set[str] = field(default_factory=set)
    last_kind: str | None = None

    def __post_init__(self):
        self.rows = [[None] * MAX_MODEL_LEN for _ in range(self.scheduler.max_num_seqs)]

    def run(self):
        for step in range(1000):
            self._arrive(step)
            self._leave(step)
            self.scheduler.check()
            plan = self._step()
            if plan is None and step > 50:
                return
        raise AssertionError("the scheduler does not come to an end")

    def _arrive(self, step):
        for i, visit in enumerate(self.visits):
            if visit.arrival != step:
                continue
            request = Request(
                f"r{i}",
                visit.num_prompt,
                visit.max_tokens,
                frozenset({STOP_TOKEN}),
                visit.num_choices,
                () if visit.whole is None else (visit.whole,),
                visit.priority,
                visit.max_chunk,
            )
            try:
                self.scheduler.add_request(request)
            except OverloadedError:
                assert self.scheduler.num_waiting == self.scheduler.max_waiting
            else:
                self.requests[request.request_id] = request
                self.added.append(request.request_id)

    def _leave(self, step):
        for i, visit in enumerate(self.visits):
            if visit.abort == step and f"r{i}" in self.requests:
                request = self.requests[f"r{i}"]
                was_open = not request.is_finished
                assert (self.scheduler.abort(f"r{i}") is request) == was_open
                if was_open:
                    self.aborted.add(f"r{i}")

    def _running(self) -> set[Choice]:
        return {choice for choice in self.outputs if choice.finish_reason is None}

    def _must_prefill(self) -> bool:
        """Whether a prompt is under way, or the first of the queue fits beside what runs."""
        open_ = [
            name
            for name in self.added
            if not self.requests[name].is_finished
            and self.requests[name].choices[0] not in self.outputs
        ]
        if not open_ or (self.admitted and self.admitted[-1] in open_):
            return bool(open_)
        first = min(open_, key=lambda name: self.requests[name].priority)
        needed = len(self._running()) + self.requests[first].num_choices
        if needed > self.scheduler.max_num_seqs:
            return False
        self.admitted.append(first)
        return True

    def _step(self) -> StepPlan | None:
        running, must_prefill = self._running(), self._must_prefill()
        plan = self.scheduler.schedule()
        self.scheduler.check()
        if plan is None:
            assert not running
            assert not must_prefill
            return None
        for copy in plan.copies:
            tokens = self.rows[copy.source][: copy.num_tokens]
            self.rows[copy.target][: copy.num_tokens] = tokens
        if plan.kind == "prefill":
            assert not running or self.last_kind != "prefill", "the streams starve"
            self._prefill(plan)
        else:
            assert not must_prefill or self.last_kind != "decode", "the prompt starves"
            self._decode(plan, running)
        self.last_kind = plan.kind
        self._sample(plan)
        self.scheduler.check()
        return plan

    def _prefill(self, plan):
        name, start = plan.request.request_id, plan.start
        assert name == self.admitted[-1], "somebody else was first"
        stop = start + plan.num_scheduled_tokens
        assert start == self.prefilled.setdefault(name, 0), "a gap or a repetition"
        first, after = self.visits[int(name[1:])].whole or (0, 0)
        assert start <= first or start >= after, "cut into what must be whole"
        assert stop <= first or stop >= after, "cut into what must be whole"
        is_whole = (start, stop) == (first, after)
        longest = self.scheduler.max_num_batched_tokens
        longest = min(longest, self.visits[int(name[1:])].max_chunk or longest)
        assert 1 <= plan.num_scheduled_tokens <= longest or is_whole
        assert self.rows[plan.slot][:start] == [(name, None, i) for i in range(start)]
        self.rows[plan.slot][start:stop] = [(name, None, i) for i in range(start, stop)]
        self.prefilled[name] = stop
        is_last = stop == plan.request.num_prompt_tokens
        assert plan.choices == (tuple(plan.request.choices) if is_last else ())

    def _decode(self, plan, running):
        assert set(plan.choices) == running
        assert len(plan.choices) == len(running) == plan.num_scheduled_tokens
        for row, choice in enumerate(plan.choices):
            name, num_prompt = choice.request.request_id, choice.request.num_prompt_tokens
            num_fed = self.outputs[choice] - 1
            history = [(name, None, i) for i in range(num_prompt)]
            history += [(name, choice.index, i) for i in range(num_fed)]
            assert choice.slot == row
            assert choice.num_computed_tokens == len(history)
            assert self.rows[row][: len(history)] == history
            self.rows[row][len(history)] = (name, choice.index, num_fed)

    def _sample(self, plan):
        tokens = []
        for choice in plan.choices:
            self.outputs[choice] = self.outputs.get(choice, 0) + 1
            visit = self.visits[int(choice.request.request_id[1:])]
            tokens.append(STOP_TOKEN * (self.outputs[choice] == visit.stop_at[choice.index]))
        self.scheduler.update(plan, tokens)
        for choice in plan.choices:
            assert choice.num_output_tokens == self.outputs[choice]
            visit = self.visits[int(choice.request.request_id[1:])]
            if choice.finish_reason is None and self.outputs[choice] == visit.stop_string_at:
                self.scheduler.finish(choice, FinishReason.STOP)


@settings(max_examples=120, deadline=None)
@given(
    visits=st.lists(visits(), max_size=10),
    max_num_seqs=st.integers(3, 5),
    chunk=st.integers(1, 9),
    max_waiting=st.integers(1, 10),
)
def test_random_traffic(visits, max_num_seqs, chunk, max_waiting):
    """Rows hold their own history, steps alternate, everybody ends once, and the queue is served by
    priority and then by arrival."""
    scheduler = Scheduler(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=chunk,
        max_model_len=MAX_MODEL_LEN,
        max_waiting=max_waiting,
    )
    traffic = Traffic(scheduler, visits)
    traffic.run()
    assert not scheduler.has_unfinished
    assert scheduler.num_running == scheduler.num_waiting == 0
    assert set(traffic.prefilled) <= set(traffic.admitted)
    for name, request in traffic.requests.items():
        assert request.is_finished
        if name not in traffic.aborted:
            assert traffic.prefilled[name] == request.num_prompt_tokens
            visit = visits[int(name[1:])]
            ends = [visit.max_tokens, visit.stop_string_at or 99]
            for choice in request.choices:
                expected = min(*ends, visit.stop_at[choice.index])
                assert traffic.outputs[choice] == expected
