from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from triton_vlm.child_process import ChildProcess, describe_status
from triton_vlm.launch_error import LaunchError

SLEEP = "import time; time.sleep(60)"
# Starts a helper as Triton starts its stubs, says so, and waits.
WITH_HELPER = f"""
import subprocess, sys, time
helper = subprocess.Popen([sys.executable, "-c", {SLEEP!r}])
print(helper.pid, flush=True)
time.sleep(60)
"""
IGNORES_SIGTERM = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(60)
"""


def child(code: str, tmp_path: Path, log_noise: str | None = None) -> ChildProcess:
    argv = [sys.executable, "-c", code]
    return ChildProcess("the child", argv, log_path=tmp_path / "child.log", log_noise=log_noise)


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    """Whether process `pid` exists and is not waiting for its parent to notice its end."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except FileNotFoundError:
        return False


def test_stop_ends_the_program_and_what_it_started(tmp_path: Path) -> None:
    process = child(WITH_HELPER, tmp_path)
    process.start()
    wait_for(process.log_text)
    helper = int(process.log_text())
    assert is_running(helper)
    process.stop(grace_s=5)
    assert process.exit_status() == -signal.SIGTERM
    wait_for(lambda: not is_running(helper))
    process.stop(grace_s=5)


def test_helpers_of_a_program_that_died_are_ended_too(tmp_path: Path) -> None:
    process = child(WITH_HELPER, tmp_path)
    process.start()
    wait_for(process.log_text)
    os.kill(process.pid, signal.SIGKILL)
    wait_for(lambda: process.exit_status() is not None)
    process.stop(grace_s=5)
    wait_for(lambda: not is_running(int(process.log_text())))


def test_a_program_that_does_not_end_when_asked_is_killed(tmp_path: Path) -> None:
    process = child(IGNORES_SIGTERM, tmp_path)
    process.start()
    wait_for(process.log_text)
    process.stop(grace_s=0.1)
    assert process.exit_status() == -signal.SIGKILL


def test_check_tells_how_a_program_ended_and_the_end_of_its_log(tmp_path: Path) -> None:
    process = child(
        "print('noise'); print('no space left'); raise SystemExit(3)", tmp_path, "noise"
    )
    process.start()
    assert process.wait(lambda: False) == 3
    with pytest.raises(LaunchError, match="the child ended with exit status 3") as caught:
        process.check()
    assert caught.value.log_tail == "no space left"
    assert caught.value.log_path == tmp_path / "child.log"


def test_waiting_for_a_program_ends_when_asked(tmp_path: Path) -> None:
    process = child(SLEEP, tmp_path)
    process.start()
    assert process.wait(lambda: True) is None
    process.stop(grace_s=5)


def test_a_terminal_interrupt_does_not_reach_the_program(tmp_path: Path) -> None:
    process = child(SLEEP, tmp_path)
    process.start()
    assert os.getpgid(process.pid) == process.pid != os.getpgid(0)
    process.stop(grace_s=5)


def test_a_program_that_is_not_there_is_named_in_the_log(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    process = ChildProcess("the child", [missing], log_path=tmp_path / "child.log")
    process.start()
    process.wait(lambda: False)
    with pytest.raises(LaunchError, match="the child ended with exit status 127") as caught:
        process.check()
    assert caught.value.log_tail == f"{missing} cannot be started: No such file or directory"


def test_a_program_ends_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    log = tmp_path / "grandchild.log"
    parent = child(
        f"""
import sys, time
from pathlib import Path
from triton_vlm.child_process import ChildProcess
code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
ChildProcess("x", [sys.executable, "-c", code], log_path=Path({str(log)!r})).start()
time.sleep(60)
""",
        tmp_path,
    )
    parent.start()
    wait_for(lambda: log.exists() and log.read_text(encoding="utf-8"))
    grandchild = int(log.read_text(encoding="utf-8"))
    assert is_running(grandchild)
    os.kill(parent.pid, signal.SIGKILL)
    wait_for(lambda: not is_running(grandchild))
    parent.stop(grace_s=5)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0, "ended with exit status 0"),
        (-9, "was ended by SIGKILL"),
        (-99, "was ended by signal 99"),
    ],
)
def test_a_status_is_described_in_words(status: int, words: str) -> None:
    assert describe_status(status) == words
