"""What a run on a GPU leaves behind: the device, the versions, and the result of every test."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from python_backend.gpu import GpuQueryError, find_gpus
from triton_vlm.doctor.gpu import find_tensorrt


class GpuReport:
    """A pytest plugin that writes `path` at the end.

    What a test records with the fixture `record_property`, such as tokens per second, goes along.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._started_s = time.time()
        self._tests: dict[str, dict[str, Any]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Set-up, test and tear-down of a test become one entry; the worst of them is its outcome."""
        empty = {"outcome": "passed", "duration_s": 0.0, "message": "", "properties": {}}
        entry = self._tests.setdefault(report.nodeid, empty)
        entry["duration_s"] = round(entry["duration_s"] + report.duration, 3)
        entry["properties"] |= dict(report.user_properties)
        if report.outcome != "passed" and entry["outcome"] != "failed":
            entry["outcome"], entry["message"] = report.outcome, _reason(report)

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        data = {
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._started_s)),
            "duration_s": round(time.time() - self._started_s, 3),
            "exit_status": int(exitstatus),
            "triton_vlm": version("triton-vlm"),
            **_device(),
            "tests": [{"id": name, **entry} for name, entry in self._tests.items()],
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.write_line(f"GPU report: {self._path}")


def _device() -> dict[str, Any]:
    try:
        gpus = [asdict(gpu) for gpu in find_gpus()]
    except GpuQueryError:
        gpus = []
    return {"gpus": gpus, "tensorrt": [asdict(library) for library in find_tensorrt()]}


def _reason(report: pytest.TestReport) -> str:
    """Why a test was skipped, or the last line of its failure."""
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2]
    return report.longreprtext.strip().rpartition("\n")[2]
