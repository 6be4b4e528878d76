"""Where a build says what it does."""

from __future__ import annotations

from typing import Protocol


class Report(Protocol):
    """Where a build says what it does."""

    def stage(self, title: str) -> None:
        """A new stage begins."""

    def progress(self, what: str, done: int, total: int) -> None:
        """`done` of `total` bytes of the stage are written."""

    def note(self, text: str) -> None:
        """Something worth a line."""
