"""Waiting for a started program until it answers, it ends, time runs out or a person stops it."""

from __future__ import annotations

import time
from collections.abc import Callable

from triton_vlm.child_process import ChildProcess
from triton_vlm.launch_error import LaunchCancelledError

POLL_INTERVAL_S = 0.1


def never() -> bool:
    """The answer of a caller that cannot be asked to stop."""
    return False


def wait_until(
    is_ready: Callable[[], bool],
    process: ChildProcess,
    *,
    timeout_s: float,
    should_stop: Callable[[], bool] = never,
    on_wait: Callable[[], None] = lambda: None,
) -> None:
    """Wait until `is_ready`, calling `on_wait` several times a second.

    Raises:
        LaunchError: `process` ended, or was not ready in time.
        LaunchCancelledError: `should_stop` said so.
    """
    deadline = time.monotonic() + timeout_s
    while not is_ready():
        process.check()
        if should_stop():
            raise LaunchCancelledError
        if time.monotonic() > deadline:
            raise process.error(f"{process.name} was not ready after {timeout_s:.0f} s")
        on_wait()
        time.sleep(POLL_INTERVAL_S)
