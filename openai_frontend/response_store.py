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
from python_backend.errors import InvalidRequestError, OverloadedError

_OVERHEAD_BYTES: Final = 1024
"""Of a response besides its JSON, about."""


class StoredResponse:
    """What a request brought and, at its end, the response.

    Its bytes are counted as long as it is in memory, whoever holds it: the store under its id, a response
    that continues it, or the request that is being answered.

    Args:
        namespace: of the API key that asks.
        input_items: JSON array of what the request brought.
        previous: what it continues.
    """

    __slots__ = ("_body", "input_items", "namespace", "previous")

    def __init__(
        self, namespace: Namespace, input_items: bytes, previous: StoredResponse | None
    ) -> None:
        self.namespace = namespace
        self.input_items = input_items
        self.previous = previous
        self._body = b""
        namespace.num_bytes += self.num_bytes

    def __del__(self) -> None:
        # Of all that can end a request, this cannot be missed.
        self.namespace.num_bytes -= self.num_bytes

    @property
    def body(self) -> bytes:
        """JSON of the response; nothing before its end."""
        return self._body

    @body.setter
    def body(self, body: bytes) -> None:
        self.namespace.num_bytes += len(body) - len(self._body)
        self._body = body

    @property
    def num_bytes(self) -> int:
        """Memory that it takes, without what it continues."""
        return len(self.input_items) + len(self._body) + _OVERHEAD_BYTES

    @property
    def num_conversation_bytes(self) -> int:
        """Memory that it takes with all that it continues."""
        return sum(turn.num_bytes for turn in self.conversation())

    def conversation(self) -> Iterator[StoredResponse]:
        """All that it continues, from the beginning, and itself."""
        turns = []
        turn: StoredResponse | None = self
        while turn is not None:
            turns.append(turn)
            turn = turn.previous
        return reversed(turns)


@dataclass(slots=True)
class _Entry:
    response: StoredResponse
    used_at: float


@dataclass(slots=True, eq=False)
class Namespace:
    """What one API key has stored.

    Attributes:
        entries: by id, the one that was unused for the longest time first.
        num_bytes: of all its responses in memory.
    """

    entries: OrderedDict[str, _Entry] = field(default_factory=OrderedDict)
    num_bytes: int = 0

    def drop_oldest(self) -> None:
        """Forget the id that was unused for the longest time."""
        self.entries.popitem(last=False)

    def drop_unused_since(self, last_used_at: float) -> None:
        """Forget the ids that were not used after a time."""
        while self.entries and next(iter(self.entries.values())).used_at <= last_used_at:
            self.drop_oldest()


class ResponseStore:
    """Keeps responses until they are deleted, unused for too long, or in the way of newer ones.

    Every API key has a namespace of its own, and sees no other. When there are too many responses, or too
    many bytes, the one goes that was unused for the longest time in the namespace that has the most of them,
    so that one caller cannot push out all others.

    Args:
        settings: the bounds.
        clock: seconds since any fixed time; replaced in tests.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_responses = settings.max_stored_responses
        self._max_bytes = settings.max_stored_bytes
        self._ttl_s = settings.stored_response_ttl_s
        self._clock = clock
        self._namespaces: dict[bytes, Namespace] = {}

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
        """Memory that is in use, also by requests that are being answered."""
        return sum(namespace.num_bytes for namespace in self._namespaces.values())

    def begin(
        self, owner: ApiKey | None, input_items: bytes, previous: StoredResponse | None = None
    ) -> StoredResponse:
        """What a request brings that shall be stored, with room made for it.

        Raises:
            InvalidRequestError: the conversation is too large for an empty store.
            OverloadedError: it is too large beside those that are being answered.
        """
        self._sweep()
        namespace = self._namespaces.setdefault(_name(owner), Namespace())
        response = StoredResponse(namespace, input_items, previous)
        num_bytes = response.num_conversation_bytes
        if num_bytes > self._max_bytes:
            raise InvalidRequestError(
                f"The conversation has {num_bytes} bytes, and this server stores {self._max_bytes}; send "
                "the request with 'store' false.",
                param="store",
            )
        self._make_room(namespace)
        if self.num_bytes > self._max_bytes:
            raise OverloadedError(
                "The requests that are being answered fill the store of responses; try again later, or "
                "send the request with 'store' false."
            )
        return response

    def add(self, response_id: str, response: StoredResponse) -> None:
        """Keep a response that has come to its end, and drop others where it needs their room."""
        response.namespace.entries[response_id] = _Entry(response, self._clock())
        self._make_room(response.namespace)

    def find(self, owner: ApiKey | None, response_id: str) -> StoredResponse:
        """A response that the same caller has made; counts as a use.

        Raises:
            ResponseNotFoundError: there is none, or no longer.
        """
        self._sweep()
        namespace = self._namespaces.get(_name(owner), Namespace())
        entry = namespace.entries.get(response_id)
        if entry is None:
            raise ResponseNotFoundError(
                f"There is no response with the id '{response_id}' of this API key, or no longer: the server "
                f"keeps up to {self._max_responses} responses, each for {self._ttl_s:.0f} seconds after its "
                "last use, and drops the oldest when there are more."
            )
        entry.used_at = self._clock()
        namespace.entries.move_to_end(response_id)
        return entry.response

    def remove(self, owner: ApiKey | None, response_id: str) -> None:
        """Forget a response of the same caller.

        Raises:
            ResponseNotFoundError: there is none, or no longer.
        """
        del self.find(owner, response_id).namespace.entries[response_id]

    def _make_room(self, namespace: Namespace) -> None:
        """Drop responses until the others are within the bounds, as far as that can be done.

        A caller whose running requests fill the store has nothing that can be dropped; then it is for
        `namespace`, which needs the room, to make it.
        """
        while self.num_responses > self._max_responses:
            max(self._namespaces.values(), key=lambda each: len(each.entries)).drop_oldest()
        while self.num_bytes > self._max_bytes:
            largest = max(self._namespaces.values(), key=lambda each: each.num_bytes)
            if not largest.entries:
                largest = namespace
            if not largest.entries:
                break
            largest.drop_oldest()

    def _sweep(self) -> None:
        """Forget what has expired, and namespaces of which nothing is left."""
        last_used_at = self._clock() - self._ttl_s
        for namespace in self._namespaces.values():
            namespace.drop_unused_since(last_used_at)
        self._namespaces = {
            name: each for name, each in self._namespaces.items() if each.entries or each.num_bytes
        }


def _name(owner: ApiKey | None) -> bytes:
    return b"" if owner is None else owner.digest
