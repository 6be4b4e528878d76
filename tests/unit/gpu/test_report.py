"""The frame of the GPU tests, tried without a GPU and with one that only nvidia-smi knows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from triton_vlm.doctor.gpu import find_tensorrt

pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).parents[3]
NO_GPU = "exit 9"
ONE_GPU = "echo 'NVIDIA L4, 8.9, 23034, 22491, 590.44.01'"


def run(tmp_path: Path, nvidia_smi: str, *files: str | Path) -> tuple[str, dict[str, Any]]:
    """What pytest printed and the report it wrote, with the given script as nvidia-smi."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{nvidia_smi}\n", encoding="utf-8")
    program.chmod(0o755)
    path = tmp_path / "build" / "gpu-report.json"
    options = ["-rs", "-p", "no:cacheprovider", f"--gpu-report={path}"]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "tests/gpu", *files],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=140,
    )
    assert path.exists(), result.stdout + result.stderr
    return result.stdout, json.loads(path.read_text(encoding="utf-8"))


def test_without_a_gpu_everything_is_skipped_with_the_reason(tmp_path: Path) -> None:
    output, report = run(tmp_path, NO_GPU)
    assert "no NVIDIA GPU: nvidia-smi fails: exit status 9" in output
    assert report["gpus"] == []
    assert report["exit_status"] == 0
    assert {test["outcome"] for test in report["tests"]} == {"skipped"}
    assert all("no NVIDIA GPU" in test["message"] for test in report["tests"])


def test_the_report_tells_device_driver_results_and_durations(tmp_path: Path) -> None:
    output, report = run(tmp_path, ONE_GPU, "-k", "doctor")
    assert "GPU report: " in output
    (gpu,) = report["gpus"]
    assert (gpu["name"], gpu["driver"]) == ("NVIDIA L4", "590.44.01")
    assert report["tensorrt"] == [asdict(library) for library in find_tensorrt()]
    (test,) = report["tests"]
    assert test["id"].endswith("test_doctor_sees_the_gpu")
    assert test["outcome"] == "passed"
    assert test["duration_s"] > 0
    assert test["properties"]["doctor"]["gpus"] == report["gpus"]
