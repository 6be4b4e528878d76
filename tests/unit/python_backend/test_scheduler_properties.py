"""Random traffic through the scheduler, with a cache that remembers what each position was computed from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from python_backend.choices import Choice, FinishReason, Request
from python_backend.errors import OverloadedError
from python_backend.scheduler import Scheduler, StepPlan

MAX_MODEL_LEN = 32
STOP_TOKEN = 1
ANSWER = (2, 3, 2, 2, 3, 3)
"""The model's tokens are these by their place, so that a prompt can be an earlier one with its answer."""


def _image(length: int) -> tuple[int, ...]:
    """Tokens that must be computed in one step; the length is part of what an image is."""
    return (100 + length,) * length


BEGINNINGS = (
    tuple(ANSWER[i % 6] for i in range(20)),
    (*_image(6), 2, 2, 2, 3),
    (2, 3, *_image(9), 2, 3, 3),
)


def _whole_ranges(tokens: Sequence[int]) -> tuple[tuple[int, int], ...]:
    ranges, place = [], 0
    while place < len(tokens):
        length = tokens[place] - 100
        if length > 0:
            ranges.append((place, place + length))
        place += max(length, 1)
    return tuple(ranges)


@dataclass(frozen=True)
class ListKey:
    """`PromptKey` in plain Python."""

    tokens: tuple[int, ...]
    salt: str

    def num_common(self, earlier: ListKey, output_token_ids: Sequence[int]) -> int:
        other = (*earlier.tokens, *output_token_ids)
        pairs = zip(self.tokens, other, strict=False)
        equal = [one == two for one, two in pairs]
        return [*equal, False].index(False) if self.salt == earlier.salt else 0


@dataclass(frozen=True)
class Visit:
    """One request of the random traffic.

    Attributes:
        arrival: step before which it comes.
        tokens: the prompt.
        salt: whom it shares with.
        abort: step before which its client leaves, if it does.
        stop_at: output token that is a stop token, per choice.
        stop_string_at: output token after which a stop string ends the choice from outside.
        priority: who waits is admitted by it, then by the length of the prompt.
        max_chunk: tokens of the prompt computed in one step, at most.
    """

    arrival: int
    tokens: tuple[int, ...]
    salt: str
    max_tokens: int
    num_choices: int
    abort: int | None
    stop_at: tuple[int, ...]
    stop_string_at: int | None
    priority: int
    max_chunk: int | None

    def cells(self, output: Sequence[int] = ()) -> list[object]:
        """What each position of prompt and output is computed from: all up to it, or to its image's end."""
        tokens = (*self.tokens, *output)
        ends = list(range(1, len(tokens) + 1))
        for first, after in _whole_ranges(self.tokens):
            ends[first:after] = [after] * (after - first)
        return [(self.salt, tokens[:end]) for end in ends]


@st.composite
def visits(draw):
    beginning = draw(st.sampled_from(BEGINNINGS))
    cuts = [i for i in range(len(beginning) + 1) if not _is_inside(i, _whole_ranges(beginning))]
    tail = draw(st.lists(st.sampled_from([(2,), (3,), _image(2), _image(4)]), max_size=2))
    tokens = (
        *beginning[: draw(st.sampled_from(cuts))],
        *(token for part in tail for token in part),
    )
    tokens = tokens or (2,)
    return Visit(
        arrival=draw(st.integers(0, 30)),
        tokens=tokens,
        salt=draw(st.sampled_from("aab")),
        max_tokens=draw(st.integers(1, MAX_MODEL_LEN - len(tokens))),
        num_choices=draw(st.sampled_from([1, 1, 1, 2, 3])),
        abort=draw(st.none() | st.integers(0, 50)),
        stop_at=draw(st.tuples(*[st.integers(1, 12)] * 3)),
        stop_string_at=draw(st.none() | st.integers(1, 8)),
        priority=draw(st.integers(-2, 2)),
        max_chunk=draw(st.none() | st.integers(1, 5)),
    )


def _is_inside(place: int, ranges: Sequence[tuple[int, int]]) -> bool:
    return any(first < place < after for first, after in ranges)


@dataclass
class Traffic:
    """Drives a scheduler and checks every step from outside.

    Attributes:
        has_cache: whether requests say what their prompts are.
        failures: steps that raise, and how many of their copies are made before.
        guesses: by the step, again and again: tokens that a decode step guesses for each choice, if they
            fit, and how many of them are right in each slot.
        rows: per cache row and position, what it was computed from.
        prefilled: prompt tokens per request that its last chunk left in the cache.
        outputs: tokens sampled per choice.
    """

    scheduler: Scheduler
    visits: list[Visit]
    has_cache: bool
    failures: dict[int, int]
    guesses: list[tuple[int, tuple[int, ...]]]
    rows: list[list[object]] = field(init=False)
    requests: dict[str, Request] = field(default_factory=dict)
    prefilled: dict[str, int] = field(default_factory=dict)
    outputs: dict[Choice, list[int]] = field(default_factory=dict)
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
            plan = self._step(self.failures.get(step), *self.guesses[step % len(self.guesses)])
            if plan is None and step > 50:
                return
        raise AssertionError("the scheduler does not come to an end")

    def _arrive(self, step):
        for i, visit in enumerate(self.visits):
            if visit.arrival != step:
                continue
            request = Request(
                f"r{i}",
                len(visit.tokens),
                visit.max_tokens,
                frozenset({STOP_TOKEN}),
                visit.num_choices,
                _whole_ranges(visit.tokens),
                ListKey(visit.tokens, visit.salt) if self.has_cache else None,
                priority=visit.priority,
                max_chunk_tokens=visit.max_chunk,
                caller=visit.salt,
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

    def _open(self) -> list[Request]:
        """Requests whose prompt is not computed yet."""
        requests = [self.requests[name] for name in self.added]
        return [r for r in requests if not r.is_finished and r.choices[0] not in self.outputs]

    def _surely_fit(self, requests: Sequence[Request]) -> bool:
        """Whether each of them fits beside what runs, even if every other prompt has a row."""
        num_held = len(self._running()) + len(self._open()) - 1
        return all(num_held + r.num_choices <= self.scheduler.max_num_seqs for r in requests)

    def _must_prefill(self) -> bool:
        """Whether a prompt must be computed, because whichever is first fits."""
        requests = self._open()
        return bool(requests) and self._surely_fit(requests)

    def _check_turn(self, request: Request) -> None:
        """A prompt under way that can be set aside makes way for more urgent ones that surely fit."""
        is_under_way = request.key is not None and request.request_id in self.prefilled
        urgent = [other for other in self._open() if other.priority < request.priority]
        can_go = bool(urgent) and self._surely_fit(urgent)
        assert not (is_under_way and can_go), "somebody else was first"

    def _visit(self, request: Request) -> Visit:
        return self.visits[int(request.request_id[1:])]

    def _step(
        self, num_copies_before_failure: int | None, num_guessed: int, num_right: tuple[int, ...]
    ) -> StepPlan | None:
        running, must_prefill = self._running(), self._must_prefill()
        plan = self.scheduler.schedule()
        self.scheduler.check()
        if plan is None:
            assert not running
            assert not must_prefill
            return None
        for copy in plan.copies[:num_copies_before_failure]:
            assert self.has_cache or copy.num_back == 0
            tokens, back = self.rows[copy.source][:], self.rows[copy.target][:]
            self.rows[copy.target][: copy.num_tokens] = tokens[: copy.num_tokens]
            self.rows[copy.source][: copy.num_back] = back[: copy.num_back]
        if num_copies_before_failure is not None:
            self._fail(plan, plan.copies[num_copies_before_failure:])
            return plan
        if plan.kind == "prefill":
            assert not running or self.last_kind != "prefill", "the streams starve"
            self._prefill(plan)
            num_right = (0,) * len(plan.choices)
        else:
            assert not must_prefill or self.last_kind != "decode", "the prompt starves"
            room = MAX_MODEL_LEN - 1 - max(c.num_computed_tokens for c in plan.choices)
            num_guessed = min(num_guessed, room)
            num_right = tuple(min(n, num_guessed) for n in num_right[: len(plan.choices)])
            self._decode(plan, running, num_guessed, num_right)
        self.last_kind = plan.kind
        self._sample(plan, num_right)
        self.scheduler.check()
        return plan

    def _fail(self, plan, copies_not_made):
        """Rows that the step was to write or to move hold anything now."""
        slots = [slot for copy in copies_not_made for slot in (copy.source, copy.target)]
        slots += [plan.slot] if plan.kind == "prefill" else range(len(plan.choices))
        for slot in slots:
            self.rows[slot] = ["?"] * MAX_MODEL_LEN
        dropped = {request.request_id for request in self.scheduler.abort_step(plan)}
        computed = {choice.request.request_id for choice in plan.choices}
        assert dropped >= computed | ({plan.request.request_id} if plan.request else set())
        assert all(self.requests[name].is_finished for name in dropped)
        self.aborted |= dropped
        self.last_kind = plan.kind
        self.scheduler.check()

    def _prefill(self, plan):
        name, start, visit = plan.request.request_id, plan.start, self._visit(plan.request)
        self._check_turn(plan.request)
        stop = start + plan.num_scheduled_tokens
        if plan.request.key is None:
            assert start == self.prefilled.get(name, 0), "it began again"
        ranges = _whole_ranges(visit.tokens)
        assert not _is_inside(start, ranges), "cut into what must be whole"
        assert not _is_inside(stop, ranges), "cut into what must be whole"
        is_whole = (start, stop) in ranges
        longest = self.scheduler.max_num_batched_tokens
        longest = min(longest, visit.max_chunk or longest)
        assert 1 <= plan.num_scheduled_tokens <= longest or is_whole
        assert self.rows[plan.slot][:start] == visit.cells()[:start]
        self.rows[plan.slot][start:stop] = visit.cells()[start:stop]
        self.prefilled[name] = stop
        is_last = stop == plan.request.num_prompt_tokens
        assert plan.choices == (tuple(plan.request.choices) if is_last else ())

    def _decode(self, plan, running, num_guessed, num_right):
        assert set(plan.choices) == running
        assert len(plan.choices) == len(running) == plan.num_scheduled_tokens
        for row, (choice, right) in enumerate(zip(plan.choices, num_right, strict=True)):
            output = list(self.outputs[choice])
            start = len(self._visit(choice.request).tokens) + len(output) - 1
            for _ in range(right):
                output.append(self._next_token(choice, output))
            cells = self._visit(choice.request).cells(output)
            assert choice.slot == row
            assert choice.num_computed_tokens == start
            assert self.rows[row][:start] == cells[:start]
            self.rows[row][start : len(cells)] = cells[start:]
            stop = start + 1 + num_guessed
            self.rows[row][len(cells) : stop] = ["wrong"] * (stop - len(cells))

    def _next_token(self, choice, output):
        visit = self._visit(choice.request)
        is_stop = len(output) + 1 == visit.stop_at[choice.index]
        place = len(visit.tokens) + len(output)
        return STOP_TOKEN if is_stop else ANSWER[place % len(ANSWER)]

    def _sample(self, plan, num_right):
        """The next token, and one for each right guess, until the choice ends."""
        self.scheduler.update(plan)
        for choice, right in zip(plan.choices, num_right, strict=True):
            output = self.outputs.setdefault(choice, [])
            for _ in range(1 + right):
                output.append(self._next_token(choice, output))
                self.scheduler.append(choice, output[-1])
                is_stop = len(output) == self._visit(choice.request).stop_string_at
                if choice.finish_reason is None and is_stop:
                    self.scheduler.finish(choice, FinishReason.STOP)
                if choice.finish_reason is not None:
                    break
            assert choice.output_token_ids == output


@settings(max_examples=300, deadline=None)
@given(
    visits=st.lists(visits(), max_size=10),
    max_num_seqs=st.integers(3, 5),
    chunk=st.integers(1, 9),
    max_waiting=st.integers(1, 10),
    has_cache=st.booleans(),
    failures=st.dictionaries(st.integers(0, 40), st.integers(0, 2), max_size=2),
    guesses=st.lists(
        st.tuples(st.integers(0, 4), st.tuples(*[st.integers(0, 4)] * 5)), min_size=1, max_size=4
    ),
)
def test_random_traffic(visits, max_num_seqs, chunk, max_waiting, has_cache, failures, guesses):
    """Rows hold their own history, nobody starves, everybody ends once, and the urgent go first."""
    scheduler = Scheduler(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=chunk,
        max_model_len=MAX_MODEL_LEN,
        max_waiting=max_waiting,
    )
    traffic = Traffic(scheduler, visits, has_cache, failures, guesses)
    traffic.run()
    assert not scheduler.has_unfinished
    assert scheduler.num_running == scheduler.num_waiting == 0
    for name, request in traffic.requests.items():
        assert request.is_finished
        assert 0 <= request.num_cached_tokens < request.num_prompt_tokens
        assert has_cache or request.num_cached_tokens == 0
        if name not in traffic.aborted:
            assert traffic.prefilled[name] == request.num_prompt_tokens
            visit = visits[int(name[1:])]
            ends = [visit.max_tokens, visit.stop_string_at or 99]
            for choice in request.choices:
                expected = min(*ends, visit.stop_at[choice.index])
                assert len(traffic.outputs[choice]) == expected
