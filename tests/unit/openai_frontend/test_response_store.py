"""Stored responses: bounds of number, bytes and age, fair between API keys."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest

from openai_frontend.api_keys import ApiKey
from openai_frontend.errors import ResponseNotFoundError
from openai_frontend.quota import Quota
from openai_frontend.response_store import ResponseStore
from openai_frontend.settings import Settings
from python_backend.errors import InvalidRequestError, OverloadedError


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def key(name: str) -> ApiKey:
    return ApiKey(digest=hashlib.sha256(name.encode()).digest(), name=name, quota=Quota(None, None))


ALICE, BOB = key("alice"), key("bob")


def keep(
    store: ResponseStore,
    response_id: str,
    num_bytes: int = 0,
    *,
    owner: ApiKey | None = None,
    previous: str | None = None,
) -> None:
    """Store a response, one that continues `previous` if that is given."""
    continued = None if previous is None else store.find(owner, previous)
    response = store.begin(owner, b"x" * num_bytes, continued)
    response.body = b"{}"
    store.add(response_id, response)


def size(num_bytes: int = 0) -> int:
    """Bytes that such a response is counted with."""
    store = ResponseStore(Settings())
    keep(store, "a", num_bytes)
    return store.num_bytes


def has(store: ResponseStore, response_id: str, owner: ApiKey | None = None) -> bool:
    try:
        store.find(owner, response_id)
    except ResponseNotFoundError:
        return False
    return True


def test_the_one_that_was_unused_for_the_longest_time_goes_first() -> None:
    store = ResponseStore(Settings(max_stored_responses=2))
    keep(store, "a")
    keep(store, "b")
    assert has(store, "a")
    keep(store, "c")
    assert [has(store, name) for name in "abc"] == [True, False, True]
    assert store.num_responses == 2


def test_bytes_are_bounded() -> None:
    store = ResponseStore(Settings(max_stored_bytes=2 * size(100)))
    for name in "abc":
        keep(store, name, 100)
        assert store.num_bytes <= 2 * size(100)
    assert [has(store, name) for name in "abc"] == [False, True, True]


def test_one_that_is_larger_than_the_store_is_refused() -> None:
    store = ResponseStore(Settings(max_stored_bytes=size(100)))
    keep(store, "a", 100)
    with pytest.raises(InvalidRequestError, match="'store' false"):
        store.begin(None, b"x" * 103)
    assert has(store, "a")


def test_one_that_outgrows_the_store_by_its_answer_is_dropped() -> None:
    store = ResponseStore(Settings(max_stored_bytes=size(100)))
    response = store.begin(None, b"x" * 100)
    response.body = b"x" * 100
    store.add("a", response)
    del response
    assert not has(store, "a")
    assert store.num_bytes == 0


def test_input_is_counted_while_its_request_is_answered() -> None:
    store = ResponseStore(Settings(max_stored_bytes=2 * size(100)))
    keep(store, "a", 100)
    running = store.begin(None, b"x" * 100)
    assert has(store, "a")
    other = store.begin(None, b"x" * 100)
    assert not has(store, "a")
    with pytest.raises(OverloadedError, match="try again later"):
        store.begin(None, b"x" * 100)
    del running, other
    assert store.num_bytes == 0
    keep(store, "b", 100)
    assert has(store, "b")


def test_a_response_is_kept_for_some_time_after_its_last_use() -> None:
    clock = Clock()
    store = ResponseStore(Settings(stored_response_ttl_s=60), clock)
    keep(store, "a")
    keep(store, "b")
    clock.now += 59
    assert has(store, "a")
    clock.now += 59
    assert [has(store, name) for name in "ab"] == [True, False]
    clock.now += 60
    assert not has(store, "a")
    assert store.num_bytes == 0


def test_expired_responses_of_others_go_too() -> None:
    clock = Clock()
    store = ResponseStore(Settings(stored_response_ttl_s=60), clock)
    keep(store, "a", owner=ALICE)
    clock.now += 60
    assert not has(store, "b", BOB)
    assert store.num_bytes == 0


def test_ids_belong_to_the_key() -> None:
    store = ResponseStore(Settings())
    keep(store, "a", owner=ALICE)
    assert [has(store, "a", owner) for owner in (ALICE, BOB, None)] == [True, False, False]
    with pytest.raises(ResponseNotFoundError):
        store.remove(BOB, "a")
    store.remove(ALICE, "a")
    assert not has(store, "a", ALICE)


@pytest.mark.parametrize(
    "settings", [Settings(max_stored_responses=3), Settings(max_stored_bytes=3 * size())]
)
def test_a_key_pushes_out_its_own_responses_first(settings) -> None:
    store = ResponseStore(settings)
    keep(store, "a", owner=ALICE)
    for name in "bcdef":
        keep(store, name, owner=BOB)
    assert has(store, "a", ALICE)
    assert [has(store, name, BOB) for name in "bcdef"] == [False, False, False, True, True]


def test_running_requests_of_a_key_push_out_nothing_of_others() -> None:
    store = ResponseStore(Settings(max_stored_bytes=3 * size(100)))
    keep(store, "a", 100, owner=ALICE)
    running = [store.begin(BOB, b"x" * 100) for _ in range(2)]
    with pytest.raises(OverloadedError):
        store.begin(BOB, b"x" * 100)
    assert has(store, "a", ALICE)
    keep(store, "b", owner=ALICE)
    assert [has(store, name, ALICE) for name in "ab"] == [False, True]
    assert len(running) == 2


def of_three_turns(store: ResponseStore) -> None:
    keep(store, "a", 100)
    keep(store, "b", 100, previous="a")
    keep(store, "c", 100, previous="b")


def remove_first(store: ResponseStore, clock: Clock) -> None:
    store.remove(None, "a")


def expire_first(store: ResponseStore, clock: Clock) -> None:
    clock.now += 30
    assert has(store, "b")
    assert has(store, "c")
    clock.now += 30


@pytest.mark.parametrize("drop", [remove_first, expire_first])
def test_a_conversation_outlives_the_ids_of_its_turns(
    drop: Callable[[ResponseStore, Clock], None],
) -> None:
    clock = Clock()
    store = ResponseStore(Settings(stored_response_ttl_s=60), clock)
    of_three_turns(store)
    drop(store, clock)
    assert [has(store, name) for name in "abc"] == [False, True, True]
    assert len([*store.find(None, "c").conversation()]) == 3
    assert store.num_bytes == 3 * size(100)
    store.remove(None, "c")
    assert store.num_bytes == 2 * size(100)
    store.remove(None, "b")
    assert store.num_bytes == 0


def test_turns_that_two_conversations_share_are_counted_once() -> None:
    store = ResponseStore(Settings())
    of_three_turns(store)
    keep(store, "d", 100, previous="b")
    assert store.num_bytes == 4 * size(100)
    for name in "cba":
        store.remove(None, name)
    assert store.num_bytes == 3 * size(100)
    store.remove(None, "d")
    assert store.num_bytes == 0


def test_what_is_dropped_while_it_is_continued_stays_for_its_continuation() -> None:
    store = ResponseStore(Settings())
    of_three_turns(store)
    response = store.begin(None, b"x" * 100, store.find(None, "c"))
    for name in "abc":
        store.remove(None, name)
    response.body = b"{}"
    store.add("d", response)
    del response
    assert store.num_bytes == 4 * size(100)
    store.remove(None, "d")
    assert store.num_bytes == 0


def test_a_conversation_that_outgrows_the_store_is_refused() -> None:
    store = ResponseStore(Settings(max_stored_bytes=3 * size(100) - 10))
    keep(store, "a", 100)
    keep(store, "b", 100, previous="a")
    with pytest.raises(InvalidRequestError, match="'store' false"):
        keep(store, "c", 100, previous="b")
    assert has(store, "b")
