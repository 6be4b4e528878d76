from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from triton_vlm.child_process import ChildProcess
from triton_vlm.launch_error import LaunchCancelledError, LaunchError
from triton_vlm.proxy import OpenAIProxy
from triton_vlm.readiness import wait_until
from triton_vlm.stack import ServingStack
from triton_vlm.triton_server import TritonServer

SLEEP = "import time; time.sleep(60)"
FAIL = "print('out of memory'); raise SystemExit(7)"


class Triton(TritonServer):
    """A program in tritonserver's place, ready as soon as it runs."""

    def __init__(self, code: str, tmp_path: Path, stopped: list[str]) -> None:
        super().__init__(tmp_path, ["m"])
        self._process = ChildProcess(
            "Triton", [sys.executable, "-c", code], log_path=tmp_path / "triton.log"
        )
        self._stopped = stopped

    def start(self) -> None:
        self.process.start()

    def _is_ready(self) -> bool:
        return True

    def stop(self) -> None:
        super().stop()
        self._stopped.append("triton")


class Proxy(OpenAIProxy):
    """A program in the proxy's place, ready when `ready` says so."""

    def __init__(
        self, code: str, tmp_path: Path, stopped: list[str], ready: Callable[[], bool]
    ) -> None:
        super().__init__("127.0.0.1:1", host="127.0.0.1", port=1)
        self.process = ChildProcess(
            "the OpenAI proxy", [sys.executable, "-c", code], log_path=tmp_path / "proxy.log"
        )
        self._stopped = stopped
        self._ready = ready

    def _is_ready(self) -> bool:
        return self._ready()

    def stop(self) -> None:
        super().stop()
        self._stopped.append("proxy")


def make_stack(
    tmp_path: Path,
    *,
    triton: str = SLEEP,
    proxy: str = SLEEP,
    ready: Callable[[], bool] = lambda: True,
) -> tuple[ServingStack, list[str]]:
    """A stack of other programs, and the list of parts that were stopped."""
    stopped: list[str] = []
    stack = ServingStack(tmp_path, "m")
    stack.triton = Triton(triton, tmp_path, stopped)
    stack.proxy = Proxy(proxy, tmp_path, stopped, ready)
    return stack, stopped


def test_the_proxy_is_stopped_before_triton(tmp_path: Path) -> None:
    stack, stopped = make_stack(tmp_path)
    with stack:
        stack.check()
        processes = (stack.triton.process, stack.proxy.process)
    assert stopped == ["proxy", "triton"]
    assert all(process.exit_status() is not None for process in processes)


@pytest.mark.parametrize(("part", "name"), [("triton", "Triton"), ("proxy", "the OpenAI proxy")])
def test_a_part_that_dies_while_serving_is_reported_with_its_log(
    tmp_path: Path, part: str, name: str
) -> None:
    programs = {part: FAIL}
    stack, stopped = make_stack(tmp_path, **programs)  # type: ignore[arg-type]
    with pytest.raises(LaunchError, match=f"^{name} ended with exit status 7$") as caught, stack:
        stack.wait(lambda: False)
    assert caught.value.log_tail == "out of memory"
    assert stopped == ["proxy", "triton"]
    assert stack.triton.process.exit_status() is not None
    assert stack.proxy.process.exit_status() is not None


def test_a_proxy_that_dies_at_its_start_stops_triton(tmp_path: Path) -> None:
    stack, stopped = make_stack(tmp_path, proxy=FAIL, ready=lambda: False)
    with pytest.raises(LaunchError, match="the OpenAI proxy ended"):
        stack.start()
    assert stopped == ["proxy", "triton"]
    assert stack.triton.process.exit_status() is not None


def test_stopping_while_waiting_stops_what_was_started(tmp_path: Path) -> None:
    stack, stopped = make_stack(tmp_path, ready=lambda: False)
    with pytest.raises(LaunchCancelledError):
        stack.start(should_stop=lambda: True)
    assert stopped == ["proxy", "triton"]
    assert stack.proxy.process.exit_status() is not None


def test_a_program_that_never_gets_ready_is_given_up(tmp_path: Path) -> None:
    process = ChildProcess("the child", [sys.executable, "-c", SLEEP])
    process.start()
    try:
        with pytest.raises(LaunchError, match="the child was not ready after 0 s"):
            wait_until(lambda: False, process, timeout_s=0.01)
    finally:
        process.stop(grace_s=5)
