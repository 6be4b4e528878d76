from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from triton_vlm.host_check import libpython_name
from triton_vlm.launch_error import LaunchError
from triton_vlm.triton_installation import (
    STUB,
    TritonInstallation,
    find_installation,
    wheel_installation,
)

VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"


def write(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("", encoding="utf-8")
    path.chmod(0o644)
    return path


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The files of the wheel, without their run bits."""
    package = tmp_path / "site-packages" / "pytriton"
    root = package / "tritonserver"
    write(root / "bin" / "tritonserver")
    write(root / "backends" / "python" / "libtriton_python.so")
    write(root / "backends" / "python" / "triton_python_backend_utils.py")
    write(root / "backends" / "python" / "__pycache__" / "old.pyc")
    write(root / "python_backend_stubs" / VERSION / STUB)
    write(root / "python_backend_stubs" / "3.9" / STUB)
    return package


def test_the_wheels_backend_is_laid_out_with_the_stub_of_this_python(
    package: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    installation = wheel_installation(package, run_dir_of(run_dir))
    assert installation.backend_directory == run_dir / "backends"
    backend = run_dir / "backends" / "python"
    assert sorted(path.name for path in backend.iterdir()) == [
        "libtriton_python.so",
        STUB,
        "triton_python_backend_utils.py",
    ]
    stub = (backend / STUB).resolve()
    assert stub.parent.name == VERSION
    assert os.access(stub, os.X_OK)
    assert os.access(installation.executable, os.X_OK)
    assert installation.library_directories[0] == package.parent / "nvidia_pytriton.libs"


def run_dir_of(path: Path) -> Path:
    path.mkdir()
    return path


def test_only_the_shared_library_of_this_python_is_added_to_the_loader(
    package: Path, tmp_path: Path
) -> None:
    installation = wheel_installation(package, run_dir_of(tmp_path / "run"))
    for directory in installation.library_directories[1:]:
        assert [path.name for path in directory.iterdir()] == [libpython_name()]


def test_a_wheel_without_a_stub_for_this_python_says_which_it_has(
    package: Path, tmp_path: Path
) -> None:
    (package / "tritonserver" / "python_backend_stubs" / VERSION / STUB).unlink()
    with pytest.raises(LaunchError, match=rf"for Python {VERSION}, only for 3\.9"):
        wheel_installation(package, run_dir_of(tmp_path / "run"))


def test_a_named_server_brings_the_backends_beside_it(tmp_path: Path) -> None:
    server = write(tmp_path / "opt" / "bin" / "tritonserver")
    server.chmod(0o755)
    found = find_installation(server, tmp_path)
    assert found == TritonInstallation(executable=server)
    write(tmp_path / "opt" / "backends" / "python" / STUB)
    found = find_installation(server, tmp_path)
    assert found.backend_directory == tmp_path / "opt" / "backends"


def test_a_named_server_that_cannot_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="not an executable file"):
        find_installation(write(tmp_path / "tritonserver"), tmp_path)


def test_triton_gets_this_python_first_and_the_wheels_libraries(tmp_path: Path) -> None:
    installation = TritonInstallation(
        executable=tmp_path / "tritonserver", library_directories=(tmp_path / "libs",)
    )
    env = installation.environment()
    assert env["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert env["LD_LIBRARY_PATH"].split(os.pathsep)[0] == str(tmp_path / "libs")
