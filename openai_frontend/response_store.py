"""Responses that may be read, deleted and continued later: in memory, within bounds, by API key."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final

from openai_frontend.api_keys import ApiKey
from openai_frontend.errors import ResponseNotFoundError
from openai_frontend.namespaces import Namespace, Namespaces
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
        self,
        namespace: Namespace[StoredResponse],
        input_items: bytes,
        previous: StoredResponse | None,
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


class ResponseStore:
    """Keeps responses until they are deleted, unused for too long, or in the way of newer ones.

    Args:
        settings: the bounds.
        clock: seconds since any fixed time; replaced in tests.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._namespaces: Namespaces[StoredResponse] = Namespaces(
            max_entries=settings.max_stored_responses,
            max_bytes=settings.max_stored_bytes,
            ttl_s=settings.stored_response_ttl_s,
            clock=clock,
        )

    @property
    def is_enabled(self) -> bool:
        """Whether anything is kept."""
        return self._namespaces.max_entries > 0

    @property
    def num_responses(self) -> int:
        """How many can be asked for."""
        return self._namespaces.num_entries

    @property
    def num_bytes(self) -> int:
        """Memory that is in use, also by requests that are being answered."""
        return self._namespaces.num_bytes

    def begin(
        self, owner: ApiKey | None, input_items: bytes, previous: StoredResponse | None = None
    ) -> StoredResponse:
        """What a request brings that shall be stored, with room made for it.

        Raises:
            InvalidRequestError: the conversation is too large for an empty store.
            OverloadedError: it is too large beside those that are being answered.
        """
        namespace = self._namespaces.open(owner)
        response = StoredResponse(namespace, input_items, previous)
        num_bytes, max_bytes = response.num_conversation_bytes, self._namespaces.max_bytes
        if num_bytes > max_bytes:
            raise InvalidRequestError(
                f"The conversation has {num_bytes} bytes, and this server stores {max_bytes}; send "
                "the request with 'store' false.",
                param="store",
            )
        self._namespaces.make_room(namespace)
        if self.num_bytes > max_bytes:
            raise OverloadedError(
                "The requests that are being answered fill the store of responses; try again later, or "
                "send the request with 'store' false."
            )
        return response

    def add(self, response_id: str, response: StoredResponse) -> None:
        """Keep a response that has come to its end, and drop others where it needs their room."""
        self._namespaces.add(response.namespace, response_id, response)

    def find(self, owner: ApiKey | None, response_id: str) -> StoredResponse:
        """A response that the same caller has made; counts as a use.

        Raises:
            ResponseNotFoundError: there is none, or no longer.
        """
        response = self._namespaces.find(owner, response_id)
        if response is None:
            raise ResponseNotFoundError(
                f"There is no response with the id '{response_id}' of this API key, or no longer: the server "
                f"keeps up to {self._namespaces.max_entries} responses, each for "
                f"{self._namespaces.ttl_s:.0f} seconds after its last use, and drops the oldest when there "
                "are more."
            )
        return response

    def remove(self, owner: ApiKey | None, response_id: str) -> None:
        """Forget a response of the same caller.

        Raises:
            ResponseNotFoundError: there is none, or no longer.
        """
        del self.find(owner, response_id).namespace.entries[response_id]
