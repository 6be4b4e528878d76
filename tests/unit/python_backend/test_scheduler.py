from dataclasses import dataclass

import pytest

from python_backend.choices import FinishReason, Request
from python_backend.errors import InvalidRequestError, OverloadedError, PromptTooLongError
from python_backend.scheduler import RowCopy, Scheduler

STOP = 99


def _scheduler(**changes):
    limits = {
        "max_num_seqs": 4,
        "max_num_batched_tokens": 8,
        "max_model_len": 64,
        "max_waiting": 8,
    }
    return Scheduler(**{**limits, **changes})


def _request(name, num_prompt=4, max_tokens=4, num_choices=1):
    return Request(name, num_prompt, max_tokens, frozenset({STOP}), num_choices)


def _step(scheduler, token_id=0):
    """One step that samples the same token everywhere."""
    plan = scheduler.schedule()
    if plan is not None:
        scheduler.update(plan)
        for choice in plan.choices:
            scheduler.append(choice, token_id)
    scheduler.check()
    return plan


def _kinds(scheduler, num_steps):
    return [_step(scheduler).kind for _ in range(num_steps)]


def test_nothing_to_do_is_no_plan():
    scheduler = _scheduler()
    assert scheduler.schedule() is None
    assert not scheduler.has_unfinished


def test_long_prompt_is_computed_in_chunks_without_gaps():
    scheduler = _scheduler()
    scheduler.add_request(_request("a", num_prompt=20))
    plans = [_step(scheduler) for _ in range(3)]
    assert [(p.start, p.num_scheduled_tokens) for p in plans] == [(0, 8), (8, 8), (16, 4)]
    assert [len(p.choices) for p in plans] == [0, 0, 1]


@pytest.mark.parametrize(
    ("ranges", "chunks"),
    [
        (((6, 10),), [(0, 6), (6, 8), (14, 6)]),  # a chunk ends before what does not fit
        (((2, 15),), [(0, 2), (2, 13), (15, 5)]),  # what is longer than a chunk goes alone
        (((8, 16),), [(0, 8), (8, 8), (16, 4)]),
        (((0, 20),), [(0, 20)]),
        (((1, 4), (4, 9)), [(0, 4), (4, 8), (12, 8)]),
    ],
)
def test_parts_that_must_be_whole_are_computed_in_one_step(ranges, chunks):
    scheduler = _scheduler()
    request = Request("a", 20, 4, frozenset({STOP}), whole_ranges=ranges)
    scheduler.add_request(request)
    plans = [_step(scheduler) for _ in chunks]
    assert [(p.start, p.num_scheduled_tokens) for p in plans] == chunks
    assert plans[-1].choices


def test_long_prompt_and_running_answer_take_turns():
    scheduler = _scheduler()
    scheduler.add_request(_request("a", max_tokens=9))
    _step(scheduler)
    scheduler.add_request(_request("b", num_prompt=30))
    assert _kinds(scheduler, 7) == ["decode", "prefill"] * 3 + ["decode"]


def test_queue_is_served_by_priority_then_the_shortest_prompt_then_by_arrival():
    scheduler = _scheduler(max_num_seqs=1)
    for name, priority, num_prompt in [
        ("a", 0, 4),
        ("b", 5, 1),
        ("c", -1, 6),
        ("d", 0, 4),
        ("e", -1, 2),
    ]:
        request = Request(name, num_prompt, 1, frozenset({STOP}), priority=priority)
        scheduler.add_request(request)
    order = [_step(scheduler).request.request_id for _ in range(5)]
    assert order == ["e", "c", "a", "d", "b"]


def _order(scheduler):
    """Requests in the order in which their prompts are computed, one chunk each."""
    plans = []
    while scheduler.has_unfinished:
        plans.append(_step(scheduler))
    return [plan.request.request_id for plan in plans if plan.kind == "prefill"]


def test_many_requests_of_one_caller_do_not_hold_up_another():
    scheduler = _scheduler(max_num_seqs=1)
    for i in range(4):
        scheduler.add_request(Request(f"a{i}", 4, 2, caller="a"))
    scheduler.add_request(Request("b0", 8, 2, caller="b"))
    scheduler.add_request(Request("b1", 8, 2, caller="b"))
    # 6 tokens for each of a's, 10 for each of b's.
    assert _order(scheduler) == ["a0", "b0", "a1", "b1", "a2", "a3"]


def test_urgent_requests_of_one_caller_go_first_all_the_same():
    scheduler = _scheduler(max_num_seqs=1)
    for name, caller, priority in [("a0", "a", -1), ("a1", "a", -1), ("b0", "b", 0)]:
        scheduler.add_request(Request(name, 4, 1, caller=caller, priority=priority))
    assert _order(scheduler) == ["a0", "a1", "b0"]


@pytest.mark.parametrize("is_running", [False, True])
def test_nobody_saves_up_turns_by_asking_for_little(is_running):
    """Neither while away, nor with one answer that goes on and on."""
    scheduler = _scheduler(max_num_seqs=2)
    if is_running:
        scheduler.add_request(Request("b", 1, 60, caller="b"))
        _step(scheduler)
    for i in range(6):
        scheduler.add_request(Request(f"a{i}", 20, 2, caller="a"))
    for plan in iter(lambda: _step(scheduler), None):
        if plan.request and plan.request.request_id == "a2":
            break
    for i in range(4):
        scheduler.add_request(Request(f"b{i}", 4, 4, caller="b"))
    order = [name for name in _order(scheduler) if name in ("a3", "b0", "b1", "b2", "b3")]
    assert order.index("a3") <= 2


def test_full_queue_refuses_whatever_the_priority():
    scheduler = _scheduler(max_num_seqs=1, max_waiting=1)
    scheduler.add_request(_request("a", num_prompt=20, max_tokens=1))
    _step(scheduler)
    scheduler.add_request(Request("b", 4, 1, priority=-9))
    with pytest.raises(OverloadedError):
        scheduler.add_request(Request("c", 4, 1, priority=-99))
    # There is one row, and no room for another prompt before the first one is done.
    order = [_step(scheduler).request.request_id for _ in range(3)]
    assert order == ["a", "a", "b"]


def test_request_may_ask_for_shorter_chunks():
    scheduler = _scheduler()
    scheduler.add_request(Request("a", 7, 4, frozenset({STOP}), max_chunk_tokens=3))
    plans = [_step(scheduler) for _ in range(3)]
    assert [(p.start, p.num_scheduled_tokens) for p in plans] == [(0, 3), (3, 3), (6, 1)]


def test_waiting_request_joins_as_soon_as_a_slot_is_free():
    scheduler = _scheduler(max_num_seqs=1)
    for name in "ab":
        scheduler.add_request(_request(name, max_tokens=2))
    assert _kinds(scheduler, 2) == ["prefill", "decode"]
    plan = _step(scheduler)
    assert (plan.kind, plan.request.request_id) == ("prefill", "b")


def test_request_of_many_choices_waits_until_all_of_them_fit():
    scheduler = _scheduler()
    scheduler.add_request(_request("a", max_tokens=3, num_choices=2))
    scheduler.add_request(_request("b", num_choices=3))
    assert _kinds(scheduler, 3) == ["prefill", "decode", "decode"]
    assert _step(scheduler).request.request_id == "b"


def test_choices_of_one_request_start_from_copies_of_its_prompt():
    scheduler = _scheduler()
    scheduler.add_request(_request("a", num_prompt=5, num_choices=3))
    assert len(_step(scheduler).choices) == 3
    plan = _step(scheduler)
    assert plan.copies == (RowCopy(0, 1, 5), RowCopy(0, 2, 5))
    assert [choice.slot for choice in plan.choices] == [0, 1, 2]


def test_hole_is_filled_by_the_last_row():
    scheduler = _scheduler()
    for name in "abc":
        scheduler.add_request(_request(name, max_tokens=9))
    while scheduler.num_waiting or _step(scheduler).kind == "prefill":
        _step(scheduler)
    scheduler.abort("a")
    plan = scheduler.schedule()
    (copy,) = plan.copies
    assert (copy.source, copy.target) == (2, 0)
    assert [choice.request.request_id for choice in plan.choices] == ["c", "b"]


@dataclass(frozen=True)
class _Key:
    """Requests of one topic have all of their tokens in common, prompts and answers."""

    topic: str

    def num_common(self, earlier, output_token_ids):
        return 1000 if self == earlier else 0


def _about(topic, name, num_prompt, max_tokens=1, **changes):
    key = _Key(topic)
    return Request(name, num_prompt, max_tokens, frozenset({STOP}), key=key, **changes)


def _run(scheduler, *requests):
    """All steps of the requests, one request after another."""
    plans = []
    for request in requests:
        scheduler.add_request(request)
        while scheduler.has_unfinished:
            plans.append(_step(scheduler))
    return plans


def test_prompt_that_goes_on_where_a_free_row_ends_is_computed_there_without_a_copy():
    scheduler = _scheduler()
    _run(scheduler, _about("a", "1", 4, max_tokens=3))
    request = _about("a", "2", 10)
    (plan,) = _run(scheduler, request)
    assert (plan.start, plan.num_scheduled_tokens, plan.copies) == (6, 4, ())
    assert request.num_cached_tokens == 6


def test_one_token_of_a_prompt_is_always_computed():
    scheduler = _scheduler()
    _run(scheduler, _about("a", "1", 4))
    (plan,) = _run(scheduler, _about("a", "2", 4))
    assert (plan.start, plan.num_scheduled_tokens) == (3, 1)
    assert plan.choices


@pytest.mark.parametrize(("ranges", "start"), [(((3, 8),), 3), (((3, 6),), 6), (((0, 9),), 0)])
def test_prefix_does_not_end_inside_what_must_be_whole(ranges, start):
    scheduler = _scheduler()
    _run(scheduler, _about("a", "1", 6))
    (plan,) = _run(scheduler, _about("a", "2", 9, whole_ranges=ranges))
    assert plan.start == start


def test_row_that_is_given_up_for_another_prompt_is_the_oldest():
    scheduler = _scheduler(max_num_seqs=2)
    _run(scheduler, *(_about(topic, topic, 4) for topic in "abca"))
    # b had to go for c, or a for it and b for a.
    starts = [_run(scheduler, _about(topic, topic, 4))[0].start for topic in "cab"]
    assert starts == [3, 3, 0]


def test_prompt_in_a_row_behind_changes_places_when_it_runs():
    scheduler = _scheduler()
    _run(scheduler, _about("a", "1", 5), _about("b", "2", 4))
    prefill, decode = _run(scheduler, _about("b", "3", 7, max_tokens=2))
    assert (prefill.slot, prefill.start, prefill.copies) == (1, 4, ())
    assert decode.copies == (RowCopy(1, 0, 7, num_back=5),)


def test_row_that_runs_is_copied():
    scheduler = _scheduler()
    scheduler.add_request(_about("a", "1", 4, max_tokens=9))
    _step(scheduler)
    scheduler.add_request(_about("a", "2", 8))
    plan = _step(scheduler)
    assert plan.kind == "decode"
    assert plan.copies == (RowCopy(0, 1, 4),)
    assert _step(scheduler).start == 4


def _prefills(scheduler):
    """(request, first token, tokens) of every chunk until nothing is left."""
    plans = []
    while scheduler.has_unfinished:
        plans.append(_step(scheduler))
    chunks = [plan for plan in plans if plan.kind == "prefill"]
    return [(p.request.request_id, p.start, p.num_scheduled_tokens) for p in chunks]


def test_shorter_prompt_goes_before_the_rest_of_a_longer_one_which_keeps_its_row():
    scheduler = _scheduler()
    scheduler.add_request(_about("long", "long", 40, max_tokens=1))
    _step(scheduler)
    scheduler.add_request(_about("short", "short", 6, max_tokens=3))
    scheduler.add_request(_about("other", "other", 9, max_tokens=1))
    assert _prefills(scheduler) == [
        *(("short", 0, 6), ("other", 0, 8), ("other", 8, 1)),
        *(("long", 8 * i, 8) for i in range(1, 5)),
    ]


def test_urgent_prompt_goes_before_the_rest_of_another_whatever_their_lengths():
    scheduler = _scheduler()
    scheduler.add_request(_about("a", "a", 20, max_tokens=1))
    _step(scheduler)
    scheduler.add_request(_about("b", "b", 30, max_tokens=1, priority=-1))
    assert [name for name, *_ in _prefills(scheduler)] == ["b"] * 4 + ["a"] * 2


@pytest.mark.parametrize(
    ("long", "short", "max_num_seqs"),
    [
        ({}, {"num_choices": 2}, 2),  # no row for all of them
        ({"key": None}, {}, 4),  # it could not be found again
    ],
)
def test_prompt_is_not_interrupted_where_it_would_lose_what_is_computed(long, short, max_num_seqs):
    scheduler = _scheduler(max_num_seqs=max_num_seqs)
    request = _about("long", "long", 20, max_tokens=1)
    request.key = long.get("key", request.key)
    scheduler.add_request(request)
    _step(scheduler)
    scheduler.add_request(_about("short", "short", 4, max_tokens=1, **short))
    assert [name for name, *_ in _prefills(scheduler)] == ["long", "long", "short"]


def test_prompt_that_waits_for_long_is_no_longer_overtaken():
    scheduler = _scheduler()
    scheduler.add_request(_about("long", "long", 40, max_tokens=1))
    _step(scheduler)
    order = []
    for i in range(60):
        scheduler.add_request(_about(f"short{i}", f"short{i}", 8, max_tokens=1))
        order.append(_step(scheduler).request.request_id)
    # 32 tokens are left, 24 more than of the others: they count like 192 computed ones.
    first = order.index("long")
    assert 20 <= first <= 30
    assert order[first : first + 4] == ["long"] * 4


def test_length_of_a_prompt_is_what_is_left_to_compute_of_it():
    scheduler = _scheduler()
    _run(scheduler, _about("history", "1", 40))
    scheduler.add_request(_about("new", "new", 9, max_tokens=1))
    scheduler.add_request(_about("history", "2", 44, max_tokens=1))
    assert next(name for name, *_ in _prefills(scheduler)) == "2"


def test_prompt_that_was_set_aside_can_be_cancelled_and_what_it_computed_is_used():
    scheduler = _scheduler()
    scheduler.add_request(_about("long", "long", 40, max_tokens=1))
    _step(scheduler)
    scheduler.add_request(_about("short", "short", 4, max_tokens=1))
    _step(scheduler)
    assert scheduler.abort("long") is not None
    assert _prefills(scheduler) == []
    assert _run(scheduler, _about("long", "again", 10))[0].start == 8


def test_choice_that_leaves_changes_places_with_the_last_one():
    scheduler = _scheduler()
    for name in "ab":
        scheduler.add_request(_about(name, name, 4, max_tokens=9))
    for _ in range(3):
        _step(scheduler)
    scheduler.abort("a")
    plan = _step(scheduler)
    assert plan.copies == (RowCopy(1, 0, 4, num_back=5),)
    scheduler.abort("b")
    assert [_run(scheduler, _about(name, name, 9))[0].start for name in "ab"] == [5, 5]


def test_nothing_is_used_again_after_a_step_that_raised():
    scheduler = _scheduler()
    _run(scheduler, _about("a", "1", 4))
    failing = _about("b", "2", 9)
    scheduler.add_request(failing)
    _step(scheduler)
    plan = scheduler.schedule()
    assert scheduler.abort_step(plan) == [failing]
    assert [_run(scheduler, _about(topic, topic, 9))[0].start for topic in "ab"] == [0, 0]


def test_request_whose_row_a_failed_step_was_moving_ends_with_it():
    scheduler = _scheduler()
    running, waiting = _about("a", "1", 4, max_tokens=9), _about("a", "2", 8)
    scheduler.add_request(running)
    _step(scheduler)
    scheduler.add_request(waiting)
    plan = scheduler.schedule()
    assert plan.choices == tuple(running.choices)
    assert scheduler.abort_step(plan) == [running, waiting]
    assert not scheduler.has_unfinished


def test_stop_token_ends_a_choice_and_max_tokens_ends_it_too():
    scheduler = _scheduler()
    stopped, long = _request("stopped"), _request("long", max_tokens=1)
    scheduler.add_request(stopped)
    scheduler.add_request(long)
    _step(scheduler, STOP)
    _step(scheduler)
    assert stopped.choices[0].finish_reason is FinishReason.STOP
    assert long.choices[0].finish_reason is FinishReason.LENGTH
    assert not scheduler.has_unfinished
    assert scheduler.schedule() is None


def test_stop_token_on_the_last_allowed_place_is_a_stop():
    scheduler = _scheduler()
    request = _request("a", max_tokens=1)
    scheduler.add_request(request)
    _step(scheduler, STOP)
    assert request.choices[0].finish_reason is FinishReason.STOP


@pytest.mark.parametrize("num_steps", [0, 1, 3, 4])
def test_abort_frees_everything_wherever_the_request_is(num_steps):
    """Waiting, in the middle of its prompt, just computed, running."""
    scheduler = _scheduler(max_num_seqs=2)
    request = _request("a", num_prompt=20, max_tokens=9, num_choices=2)
    scheduler.add_request(request)
    for _ in range(num_steps):
        _step(scheduler)
    assert scheduler.abort("a") is request
    assert scheduler.num_running == scheduler.num_waiting == 0
    assert scheduler.abort("a") is None
    scheduler.add_request(_request("b", num_choices=2))
    assert _step(scheduler).request.request_id == "b"


def test_abort_between_schedule_and_update_is_obeyed():
    scheduler = _scheduler()
    scheduler.add_request(_request("a"))
    plan = scheduler.schedule()
    scheduler.abort("a")
    scheduler.update(plan)
    assert not scheduler.has_unfinished
    assert scheduler.schedule() is None


def test_request_that_fills_the_context_exactly_is_taken():
    scheduler = _scheduler()
    assert scheduler.max_output_tokens(60) == 4
    scheduler.add_request(_request("a", num_prompt=60, max_tokens=4))


@pytest.mark.parametrize(
    ("request_", "error", "param"),
    [
        (_request("a", num_prompt=64, max_tokens=1), PromptTooLongError, "messages"),
        (_request("a", num_prompt=60, max_tokens=5), InvalidRequestError, "max_tokens"),
        (_request("a", num_choices=5), InvalidRequestError, "n"),
    ],
)
def test_request_that_can_never_run_is_refused(request_, error, param):
    scheduler = _scheduler()
    with pytest.raises(error) as caught:
        scheduler.add_request(request_)
    assert caught.value.param == param
    assert not scheduler.has_unfinished


def test_full_queue_refuses_and_says_its_limit():
    scheduler = _scheduler(max_waiting=2)
    for name in "ab":
        scheduler.add_request(_request(name))
    with pytest.raises(OverloadedError, match="2 requests waiting"):
        scheduler.add_request(_request("c"))
    _step(scheduler)
    scheduler.add_request(_request("c"))
