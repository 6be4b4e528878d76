"""What can end a launch: an error that says what to change, or a request to stop."""

from __future__ import annotations

from pathlib import Path


class LaunchError(Exception):
    """Something that was to be started cannot run; the message is one sentence.

    Attributes:
        log_path: log of the process that failed, None when there is none.
        log_tail: last lines of that log, empty when there is none.
    """

    def __init__(self, message: str, *, log_path: Path | None = None, log_tail: str = "") -> None:
        super().__init__(message)
        self.log_path = log_path
        self.log_tail = log_tail


class LaunchCancelledError(Exception):
    """A signal asked to stop before everything was up; not a failure."""
