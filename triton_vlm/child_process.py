"""One program that this one starts, watches and stops, with everything it started itself."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from triton_vlm import die_with_parent
from triton_vlm.launch_error import LaunchError

# Isolated and without packages: it starts in a few hundredths of a second.
_DIE_WITH_PARENT = (sys.executable, "-I", "-S", die_with_parent.__file__)

POLL_INTERVAL_S = 0.05
TAIL_LINES = 25


class ChildProcess:
    """A program in a session of its own, so that a terminal's ctrl-C reaches only this program.

    `stop` ends the whole process group: what the program left behind cannot outlive it. When the
    thread that called `start` ends without `stop`, even by SIGKILL, the program gets a SIGTERM.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        log_path: Path | None = None,
        log_noise: str | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
    ) -> None:
        """Describe the program; `start` runs it.

        Args:
            name: what to call it in messages, such as "Triton".
            argv: the command line.
            env: its whole environment, None for this program's.
            log_path: where its output goes, overwritten; None leaves it on this program's.
            log_noise: regular expression of the starts of lines that a person looking for an error
                need not see; None when there are none.
            stop_signal: what asks the program to end.
        """
        self.name = name
        self.argv = [str(argument) for argument in argv]
        self.log_path = log_path
        self._env = None if env is None else dict(env)
        self._log_noise = None if log_noise is None else re.compile(log_noise)
        self._stop_signal = stop_signal
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Run the program; `check` tells if it could not be run."""
        with contextlib.ExitStack() as stack:
            output = None
            if self.log_path is not None:
                self.log_path.parent.mkdir(parents=True, exist_ok=True)
                output = stack.enter_context(self.log_path.open("wb"))
            self._process = subprocess.Popen(
                [*_DIE_WITH_PARENT, str(os.getpid()), *self.argv],
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=None if output is None else subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Process id, which is also the id of its process group."""
        if self._process is None:
            raise RuntimeError(f"{self.name} was not started")
        return self._process.pid

    def exit_status(self) -> int | None:
        """Status the program ended with (negative: the signal), None while it runs."""
        return None if self._process is None else self._process.poll()

    def wait(self, should_stop: Callable[[], bool]) -> int | None:
        """The status the program ends with, None when `should_stop` ended the wait."""
        while (status := self.exit_status()) is None and not should_stop():
            time.sleep(POLL_INTERVAL_S)
        return status

    def check(self) -> None:
        """Check that the program runs.

        Raises:
            LaunchError: it has ended; with the end of its log.
        """
        status = self.exit_status()
        if status is not None:
            raise self.error(f"{self.name} {describe_status(status)}")

    def error(self, message: str) -> LaunchError:
        """`message` with this program's log attached."""
        return LaunchError(message, log_path=self.log_path, log_tail=self.log_tail())

    def log_text(self) -> str:
        """Everything the program has written so far, empty when it has no log."""
        if self.log_path is None or not self.log_path.exists():
            return ""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def log_tail(self) -> str:
        """The last lines the program has written, noise left out."""
        lines = self.log_text().splitlines()
        if self._log_noise is not None:
            lines = [line for line in lines if line and not self._log_noise.match(line)]
        return "\n".join(lines[-TAIL_LINES:])

    def stop(self, grace_s: float) -> None:
        """Ask the program to end, and end its whole group after `grace_s`; twice is allowed."""
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(self._stop_signal)
            deadline = time.monotonic() + grace_s
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(POLL_INTERVAL_S)
        # Also when the leader ended by itself: its helpers may be left.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def describe_status(status: int) -> str:
    """An exit status in words."""
    if status >= 0:
        return f"ended with exit status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"
