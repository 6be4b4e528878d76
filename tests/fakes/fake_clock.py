"""A clock that a test moves."""

from __future__ import annotations


class Clock:
    """Seconds since any fixed time.

    Attributes:
        now: what it shows.
    """

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """What it shows."""
        return self.now
