from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest

from triton_vlm.doctor import host
from triton_vlm.doctor.check import Status, in_gib
from triton_vlm.triton_installation import TritonInstallation


def test_a_python_that_is_too_new_prevents_serving() -> None:
    assert host.python_check((3, 12, 1)).status is Status.OK
    check = host.python_check((3, 14, 0))
    assert check.prevents_serving
    assert "Python 3.11 and 3.12" in check.next_step


def test_shared_memory_that_cannot_be_written_prevents_serving(tmp_path: Path) -> None:
    assert host.shared_memory_check(tmp_path / "missing").prevents_serving


def test_a_containers_default_shared_memory_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = shutil.disk_usage(tmp_path)._replace(free=64 * 2**20)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: small)
    check = host.shared_memory_check(tmp_path)
    assert check.status is Status.WARN
    assert "--shm-size" in check.next_step
    assert not check.prevents_serving
    assert list(tmp_path.iterdir()) == []


def test_little_memory_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    meminfo = "MemTotal: 2097152 kB\nMemAvailable: 524288 kB\n"
    (tmp_path / "proc/meminfo").write_text(meminfo, encoding="utf-8")
    check = host.memory_check(tmp_path)
    assert check.status is Status.WARN
    assert check.finding == "512 MiB free of 2.0 GiB, no limit"


def test_a_tritonserver_that_is_not_there_prevents_serving(tmp_path: Path) -> None:
    check = host.triton_check(tmp_path / "tritonserver")
    assert check.prevents_serving
    assert "not an executable file" in check.next_step


def test_the_version_of_nvidias_container_is_in_a_file_beside_its_programs(tmp_path: Path) -> None:
    executable = tmp_path / "bin" / "tritonserver"
    installation = TritonInstallation(executable=executable)
    assert host.triton_version(installation) == "unknown version"
    (tmp_path / "TRITON_VERSION").write_text("2.73.0\n", encoding="utf-8")
    assert host.triton_version(installation) == "2.73.0"


def test_a_port_in_use_is_a_warning_that_names_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        check = host.ports_check((port,))
    assert check.status is Status.WARN
    assert str(port) in check.finding
    assert host.ports_check((port,)).status is Status.OK


def test_sizes_are_told_in_the_unit_a_person_would_take() -> None:
    assert in_gib(64 * 2**20) == "64 MiB"
    assert in_gib(3 * 2**29) == "1.5 GiB"
