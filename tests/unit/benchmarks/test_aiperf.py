"""What AIPerf is told; it is not installed here."""

from __future__ import annotations

import subprocess
from pathlib import Path

from benchmarks import aiperf


def test_aiperf_takes_the_tokenizer_from_the_folder(monkeypatch, tmp_path) -> None:
    """Where it is told to be offline, it looks for hub ids only."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    runs = []
    monkeypatch.setattr(subprocess, "run", lambda command, **more: runs.append((command, more)))
    aiperf.profile(Path("bin/python"), "http://127.0.0.1:9000/v1", tmp_path / "model", 8, tmp_path)
    ((command, more),) = runs
    assert command[command.index("--tokenizer") + 1] == str(tmp_path / "model")
    assert command[command.index("--url") + 1] == "http://127.0.0.1:9000"
    assert more["check"]
    assert "PATH" in more["env"]
    assert "HF_HUB_OFFLINE" not in more["env"]
