"""What clients may name and come back for: in memory, by API key, within bounds that all keys share."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from openai_frontend.api_keys import ApiKey

_T = TypeVar("_T")


@dataclass(slots=True)
class _Entry(Generic[_T]):
    value: _T
    used_at: float


@dataclass(slots=True, eq=False)
class Namespace(Generic[_T]):
    """What one API key has stored.

    Attributes:
        entries: by name, the one that was unused for the longest time first.
        num_bytes: of all its values in memory, which count themselves.
    """

    entries: OrderedDict[str, _Entry[_T]] = field(default_factory=OrderedDict)
    num_bytes: int = 0

    def drop_oldest(self) -> None:
        """Forget the name that was unused for the longest time."""
        self.entries.popitem(last=False)

    def drop_unused_since(self, last_used_at: float) -> None:
        """Forget the names that were not used after a time."""
        while self.entries and next(iter(self.entries.values())).used_at <= last_used_at:
            self.drop_oldest()


class Namespaces(Generic[_T]):
    """Keeps values until they are unused for too long, or in the way of newer ones.

    Every API key has a namespace of its own, and sees no other. When there are too many values, or too
    many bytes, the one goes that was unused for the longest time in the namespace that has the most of them,
    so that one caller cannot push out all others.

    Args:
        max_entries: values of all namespaces.
        max_bytes: of all values.
        ttl_s: how long a value is kept after its last use.
        clock: seconds since any fixed time.
    """

    def __init__(
        self,
        *,
        max_entries: int,
        max_bytes: int,
        ttl_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.max_entries = max_entries
        self.max_bytes = max_bytes
        self.ttl_s = ttl_s
        self._clock = clock
        self._namespaces: dict[bytes, Namespace[_T]] = {}

    @property
    def num_entries(self) -> int:
        """How many values can be asked for."""
        return sum(len(namespace.entries) for namespace in self._namespaces.values())

    @property
    def num_bytes(self) -> int:
        """Memory that is in use, also by values that are not kept."""
        return sum(namespace.num_bytes for namespace in self._namespaces.values())

    def open(self, owner: ApiKey | None) -> Namespace[_T]:
        """The namespace of a caller, without what has expired."""
        self._sweep()
        return self._namespaces.setdefault(_name(owner), Namespace())

    def find(self, owner: ApiKey | None, name: str) -> _T | None:
        """What the same caller has stored under `name`, if it is still there; counts as a use."""
        self._sweep()
        namespace = self._namespaces.get(_name(owner))
        entry = None if namespace is None else namespace.entries.get(name)
        if namespace is None or entry is None:
            return None
        entry.used_at = self._clock()
        namespace.entries.move_to_end(name)
        return entry.value

    def add(self, namespace: Namespace[_T], name: str, value: _T) -> None:
        """Keep a value in place of an earlier one of that name, and drop others where it needs their room."""
        namespace.entries[name] = _Entry(value, self._clock())
        namespace.entries.move_to_end(name)
        self.make_room(namespace)

    def make_room(self, namespace: Namespace[_T]) -> None:
        """Drop values until the others are within the bounds, as far as that can be done.

        A caller whose values that are not kept fill the memory has nothing that can be dropped; then it is
        for `namespace`, which needs the room, to make it.
        """
        while self.num_entries > self.max_entries:
            max(self._namespaces.values(), key=lambda each: len(each.entries)).drop_oldest()
        while self.num_bytes > self.max_bytes:
            largest = max(self._namespaces.values(), key=lambda each: each.num_bytes)
            if not largest.entries:
                largest = namespace
            if not largest.entries:
                break
            largest.drop_oldest()

    def _sweep(self) -> None:
        """Forget what has expired, and namespaces of which nothing is left."""
        last_used_at = self._clock() - self.ttl_s
        for namespace in self._namespaces.values():
            namespace.drop_unused_since(last_used_at)
        self._namespaces = {
            name: each for name, each in self._namespaces.items() if each.entries or each.num_bytes
        }


def _name(owner: ApiKey | None) -> bytes:
    return b"" if owner is None else owner.digest
