"""Where the time of a request goes in the decoder."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Three times that follow each other without a gap.

    Attributes:
        arrived_at: Unix time in seconds at which the decoder took the request.
        queue_s: until its first step.
        prefill_s: from there to its first token.
        decode_s: from there to the last token of all its choices.
    """

    arrived_at: float
    queue_s: float
    prefill_s: float
    decode_s: float


@dataclass(slots=True)
class Stopwatch:
    """Runs from its creation, which is the arrival of a request."""

    _arrived_at: float = field(default_factory=time.time)
    _created: float = field(default_factory=time.perf_counter)
    _started: float | None = None
    _first_token: float | None = None

    def start(self) -> None:
        """Note the first step; later calls do nothing."""
        self._started = self._started or time.perf_counter()

    def first_token(self) -> None:
        """Note the first token; later calls do nothing."""
        self._first_token = self._first_token or time.perf_counter()

    def timing(self) -> Timing:
        """The times of a request whose last token is there."""
        assert self._started is not None
        assert self._first_token is not None
        return Timing(
            arrived_at=self._arrived_at,
            queue_s=self._started - self._created,
            prefill_s=self._first_token - self._started,
            decode_s=time.perf_counter() - self._first_token,
        )
