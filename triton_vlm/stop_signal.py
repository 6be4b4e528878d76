"""Turns SIGINT, SIGTERM and SIGHUP into a question the program asks when it is safe to stop."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopSignal:
    """Remembers, while entered, that a signal asked this program to stop.

    A handler that raised could do so between starting a child and remembering it, so this one only
    takes a note; every loop that waits asks `is_set`.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def is_set(self) -> bool:
        """Whether a signal has arrived."""
        return self.received is not None

    def __enter__(self) -> StopSignal:
        self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
