"""Responses that may be read, deleted and continued later: in memory, within bounds, by API key."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from openai_frontend.api_keys import ApiKey
from openai_frontend.errors import ResponseNotFoundError
from openai_frontend.settings import Settings
from python_backend.errors import InvalidRequestError

_ENTRY_BYTES: Final = 1024
"""Of a response besides its JSON, about."""


@dataclass(slots=True, kw_only=True, eq=False)
class StoredResponse:
    """One response and what it was the answer to.

    Attributes:
        input_items: JSON array of what its request brought.
        body: JSON of the response.
        previous: what it continues.
        num_holders: ids and continuations that keep it in memory; the store counts them.
    """

    input_items: bytes
    body: bytes
    previous: StoredResponse | None = None
    num_holders: int = 0

    @property
    def num_bytes(self) -> int:
        """Memory that it takes, without what it continues."""
        return len(self.input_items) + len(self.body) + _ENTRY_BYTES

    def conversation(self) -> Iterator[StoredResponse]:
        """All that it continues, from the beginning, and itself."""
        turns = []
        turn: StoredResponse | None = self
        while turn is not None:
            turns.append(turn)
            turn = turn.previous
        return reversed(turns)


class ResponseStore:
    """Keeps responses until they are deleted, unused for too long, or in the way of newer ones.

    Every API key has a namespace of its own, and sees no other. When there are too many responses, or too
    many bytes, the one goes that was unused for the longest time in the namespace that has the most of them,
    so that one caller cannot push out all others. A response that others continue stays in memory, and is
    counted, as long as one of them does, although its id is gone.

    Args:
        settings: the bounds.
        clock: seconds since any fixed time; replaced in tests.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_responses = settings.max_stored_responses
        self._max_bytes = settings.max_stored_bytes
        self._ttl_s = settings.stored_response_ttl_s
        self._clock = clock
        self._namespaces: dict[bytes, _Namespace] = {}

    @property
    def is_enabled(self) -> bool:
        """Whether anything is kept."""
        return self._max_responses > 0

    @property
    def num_responses(self) -> int:
        """How many can be asked for."""
        return sum(len(namespace.entries) for namespace in self._namespaces.values())

    @property
    def num_bytes(self) -> int:
        """Memory that is in use."""
        return sum(namespace.num_bytes for namespace in self._namespaces.values())

    def check_size(self, num_bytes: int) -> None:
        """Refuse a request whose input can never be kept.

        Raises:
            InvalidRequestError: there is no room for `num_bytes` in an empty store.
        """
        if num_bytes + _ENTRY_BYTES > self._max_bytes:
            raise InvalidRequestError(
                f"The input has {num_bytes} bytes, more than this server can store; send it with "
                "'store' false.",
                param="store",
            )

    def add(self, owner: ApiKey | None, response_id: str, response: StoredResponse) -> None:
        """Keep a response, and drop others where it needs their room."""
        self._drop_expired()
        namespace = self._namespaces.setdefault(_name(owner), _Namespace())
        namespace.add(response_id, response, self._clock())
        while self.num_responses > self._max_responses:
            self._drop_oldest(max(self._namespaces.values(), key=lambda each: len(each.entries)))
        while self.num_bytes > self._max_bytes:
            self._drop_oldest(max(self._namespaces.values(), key=lambda each: each.num_bytes))

    def find(self, owner: ApiKey | None, response_id: str) -> StoredResponse:
        """A response that the same caller has made; counts as a use.

        Raises:
            ResponseNotFoundError: there is none, or no longer.
        """
        self._drop_expired()
        namespace = self._namespaces.get(_name(owner))
        response = namespace and namespace.find(response_id, self._clock())
        if not response:
            raise ResponseNotFoundError(
                f"There is no response with the id '{response_id}' of this API key, or no longer: the server "
                f"keeps up to {self._max_responses} responses, each for {self._ttl_s:.0f} seconds after its "
                "last use, and drops the oldest when there are more."
            )
        return response

    def remove(self, owner: ApiKey | None, response_id: str) -> None:
        """Forget a response of the same caller.

        Raises:
            ResponseNotFoundError: there is none, or no longer.
        """
        self.find(owner, response_id)
        self._namespaces[_name(owner)].remove(response_id)
        self._forget_empty()

    def _drop_expired(self) -> None:
        last_used_at = self._clock() - self._ttl_s
        for namespace in self._namespaces.values():
            namespace.drop_unused_since(last_used_at)
        self._forget_empty()

    def _drop_oldest(self, namespace: _Namespace) -> None:
        namespace.remove(next(iter(namespace.entries)))
        self._forget_empty()

    def _forget_empty(self) -> None:
        self._namespaces = {name: each for name, each in self._namespaces.items() if each.entries}


@dataclass(slots=True)
class _Entry:
    response: StoredResponse
    used_at: float


@dataclass(slots=True)
class _Namespace:
    """The responses of one API key, the one that was unused for the longest time first."""

    entries: OrderedDict[str, _Entry] = field(default_factory=OrderedDict)
    num_bytes: int = 0

    def add(self, response_id: str, response: StoredResponse, now: float) -> None:
        self.entries[response_id] = _Entry(response, now)
        # What was dropped while its continuation was generated is counted again.
        turn: StoredResponse | None = response
        while turn is not None:
            turn.num_holders += 1
            if turn.num_holders > 1:
                break
            self.num_bytes += turn.num_bytes
            turn = turn.previous

    def find(self, response_id: str, now: float) -> StoredResponse | None:
        entry = self.entries.get(response_id)
        if entry is None:
            return None
        entry.used_at = now
        self.entries.move_to_end(response_id)
        return entry.response

    def remove(self, response_id: str) -> None:
        turn: StoredResponse | None = self.entries.pop(response_id).response
        while turn is not None:
            turn.num_holders -= 1
            if turn.num_holders:
                break
            self.num_bytes -= turn.num_bytes
            turn = turn.previous

    def drop_unused_since(self, last_used_at: float) -> None:
        while self.entries:
            response_id, entry = next(iter(self.entries.items()))
            if entry.used_at > last_used_at:
                break
            self.remove(response_id)


def _name(owner: ApiKey | None) -> bytes:
    return b"" if owner is None else owner.digest
