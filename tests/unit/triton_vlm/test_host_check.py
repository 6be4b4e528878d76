from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from triton_vlm import host_check


@pytest.mark.parametrize("version", [(3, 11), (3, 12), (3, 12, 4)])
def test_supported_pythons_pass(version: tuple[int, ...]) -> None:
    assert host_check.python_problem(version) is None


@pytest.mark.parametrize("version", [(3, 9), (3, 10), (3, 13), (4, 0)])
def test_other_pythons_are_refused_with_what_to_install(version: tuple[int, ...]) -> None:
    problem = host_check.python_problem(version)
    assert problem is not None
    assert f"Python {version[0]}.{version[1]}" in problem
    assert "3.11" in problem


def test_the_check_runs_as_a_script_without_any_package() -> None:
    script = Path(host_check.__file__)
    command = [sys.executable, "-I", "-S", str(script)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert result.returncode in (0, 1)
    assert (result.stderr == "") == (result.returncode == 0)
    assert "Traceback" not in result.stderr
