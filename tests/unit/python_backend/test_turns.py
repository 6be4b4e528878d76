"""Turns between real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from python_backend.errors import EngineError
from python_backend.turns import Turns

OTHER = """
import sys
from python_backend.turns import Turns
with Turns("model"):
    print("in", flush=True)
    sys.stdin.readline()
print("out", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Turns]:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    turns = Turns("model")
    yield turns
    turns.close()


@pytest.fixture
def other(turns: Turns) -> Iterator[subprocess.Popen[str]]:
    """Another process, which wants one turn."""
    with subprocess.Popen(
        [sys.executable, "-c", OTHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


def wait_until_blocked(pid: int) -> None:
    """Until the kernel lists a lock that the process waits for."""
    while not any(
        line.split()[1] == "->" and line.split()[5] == str(pid)
        for line in Path("/proc/locks").read_text().splitlines()
    ):
        os.sched_yield()


def test_who_waits_comes_before_who_had_it_last(turns: Turns, other: subprocess.Popen[str]) -> None:
    assert other.stdin
    assert other.stdout
    with turns:
        wait_until_blocked(other.pid)
    # The other has the turn now, or is about to: it says so before this process gets its next one.
    other.stdin.write("\n")
    other.stdin.flush()
    with turns:
        os.set_blocking(other.stdout.fileno(), False)
        assert other.stdout.readline() == "in\n"


def test_a_process_that_is_killed_gives_its_turn_back(
    turns: Turns, other: subprocess.Popen[str]
) -> None:
    assert other.stdout
    assert other.stdout.readline() == "in\n"
    other.kill()
    with turns:
        assert other.wait() == -9


def test_models_do_not_wait_for_each_other(turns: Turns) -> None:
    with turns, Turns("another model"):
        pass


def test_a_lock_file_that_cannot_be_opened_is_named(
    turns: Turns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in tmp_path.iterdir():
        path.unlink()
        path.symlink_to("/etc/passwd")
    with pytest.raises(EngineError, match=r"lock file .*\.seat.*TMPDIR"):
        Turns("model")


def test_the_lock_file_of_another_user_is_refused(
    turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = os.getuid()
    calls = iter([owner, owner + 1])
    monkeypatch.setattr(os, "getuid", lambda: next(calls))
    with pytest.raises(EngineError, match="another user"):
        Turns("model")
