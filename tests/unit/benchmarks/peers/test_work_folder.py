from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.peers.work_folder import REQUIREMENTS, WorkFolder
from triton_vlm.launch_error import LaunchError


def test_what_was_made_is_not_made_again(tmp_path: Path):
    made = []
    for _ in range(2):
        WorkFolder(tmp_path).once("thing", "key", made.append)
    assert made == [tmp_path / "thing"]


def test_another_key_makes_it_again_from_nothing(tmp_path: Path):
    WorkFolder(tmp_path).once("thing", "old", lambda folder: (folder / "file").touch())
    folder = WorkFolder(tmp_path).once("thing", "new", lambda folder: None)
    assert not (folder / "file").exists()


def test_what_failed_is_made_again(tmp_path: Path):
    def fail(folder: Path) -> None:
        raise LaunchError("no")

    with pytest.raises(LaunchError):
        WorkFolder(tmp_path).once("thing", "key", fail)
    made = []
    WorkFolder(tmp_path).once("thing", "key", made.append)
    assert made


def test_a_failing_command_says_what_it_wrote(tmp_path: Path):
    command = [sys.executable, "-c", "print('reason'); raise SystemExit(3)"]
    with pytest.raises(LaunchError, match="exit status 3") as caught:
        WorkFolder(tmp_path).command("step", command)
    assert caught.value.log_tail == "reason"


@pytest.mark.parametrize("path", sorted(REQUIREMENTS.glob("*.txt")), ids=lambda path: path.stem)
def test_every_package_of_a_peer_has_an_exact_version_once(path: Path):
    lines = path.read_text(encoding="utf-8").splitlines()
    names = [line.partition("==")[0] for line in lines]
    assert all(line.count("==") == 1 for line in lines)
    assert len(set(names)) == len(names)
