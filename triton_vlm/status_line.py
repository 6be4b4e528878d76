"""Tells a waiting person what is being waited for."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console


class StatusLine:
    """A spinner with the elapsed time in a terminal, a line per change anywhere else."""

    def __init__(self, console: Console, started_s: float) -> None:
        """Describe the line.

        Args:
            console: where it is shown.
            started_s: `time.monotonic()` of what the elapsed time counts from.
        """
        self._console = console
        self._started_s = started_s
        self._shown = ""
        self._spinner = console.status("") if console.is_terminal else None

    def show(self, text: str) -> None:
        """Show `text` until the next call."""
        if self._spinner is not None:
            self._spinner.update(f"{text} ({time.monotonic() - self._started_s:.0f} s)")
        elif text != self._shown:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        self._shown = text

    def __enter__(self) -> StatusLine:
        if self._spinner is not None:
            self._spinner.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._spinner is not None:
            self._spinner.stop()
