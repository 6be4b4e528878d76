"""Where tritonserver is on this machine and what it must be given to find its Python backend."""

from __future__ import annotations

import importlib.util
import os
import shutil
import stat
import sys
from dataclasses import dataclass, field
from pathlib import Path

from triton_vlm.host_check import (
    find_libpython,
    libpython_name,
    loader_finds_libpython,
    triton_problem,
)
from triton_vlm.launch_error import LaunchError

STUB = "triton_python_backend_stub"


@dataclass(frozen=True, kw_only=True, slots=True)
class TritonInstallation:
    """A tritonserver that can be started.

    Attributes:
        executable: the server.
        backend_directory: folder with one folder per backend, None for the server's own default.
        library_directories: what the loader must search before its usual places.
    """

    executable: Path
    backend_directory: Path | None = None
    library_directories: tuple[Path, ...] = field(default=())

    def environment(self) -> dict[str, str]:
        """This program's environment, changed so that Triton runs models in this Python.

        The stub takes its packages from the first `python3` in PATH and ignores PYTHONPATH.
        """
        env = dict(os.environ)
        env.setdefault(
            "TRANSFORMERS_VERBOSITY", "error"
        )  # it tells every log that torch is missing
        env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", "")])
        libraries = [str(path) for path in self.library_directories]
        if libraries:
            inherited = env.get("LD_LIBRARY_PATH")
            env["LD_LIBRARY_PATH"] = os.pathsep.join(
                [*libraries, *([inherited] if inherited else [])]
            )
        return env


def find_installation(explicit: Path | None, run_dir: Path) -> TritonInstallation:
    """The tritonserver to use: the named one, else the one in PATH, else the wheel's.

    Args:
        explicit: the executable a person named, None when they did not.
        run_dir: existing folder for links that the wheel's server needs; must outlive the server.

    Raises:
        LaunchError: there is none, or it cannot run here.
    """
    if explicit is not None:
        if not os.access(explicit, os.X_OK) or explicit.is_dir():
            raise LaunchError(f"{explicit} is not an executable file: name tritonserver itself")
        return _from_executable(explicit.absolute())
    in_path = shutil.which("tritonserver")
    if in_path is not None:
        return _from_executable(Path(in_path).resolve())
    return _from_wheel(run_dir)


def _from_executable(executable: Path) -> TritonInstallation:
    """A server laid out as in NVIDIA's container: `bin/tritonserver` beside `backends/python`."""
    backends = executable.parent.parent / "backends"
    found = (backends / "python" / STUB).exists()
    return TritonInstallation(executable=executable, backend_directory=backends if found else None)


def _from_wheel(run_dir: Path) -> TritonInstallation:
    """The server in the nvidia-pytriton wheel, with the links it needs made in `run_dir`."""
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise LaunchError(
            "there is no tritonserver in PATH and nvidia-pytriton is not installed: "
            "pip install 'triton-vlm[triton]', or name the server with --tritonserver PATH"
        )
    problem = triton_problem()
    if problem:
        raise LaunchError(problem)
    package = Path(spec.origin).parent
    return wheel_installation(package, run_dir)


def wheel_installation(package: Path, run_dir: Path) -> TritonInstallation:
    """The server in `package`, the installed `pytriton` folder.

    Raises:
        LaunchError: the wheel has no stub for this Python, or its files cannot be made executable.
    """
    root = package / "tritonserver"
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    stub = root / "python_backend_stubs" / version / STUB
    if not stub.exists():
        built = sorted(path.parent.name for path in stub.parent.parent.glob(f"*/{STUB}"))
        raise LaunchError(
            f"the packaged Triton has no Python backend for Python {version}, only for "
            f"{', '.join(built) or 'none'}"
        )
    executable = root / "bin" / "tritonserver"
    for path in (executable, stub):
        _make_executable(path)
    backend = run_dir / "backends" / "python"
    backend.mkdir(parents=True)
    for path in (root / "backends" / "python").iterdir():
        if path.name != "__pycache__":
            (backend / path.name).symlink_to(path)
    (backend / STUB).symlink_to(stub)
    return TritonInstallation(
        executable=executable,
        backend_directory=backend.parent,
        library_directories=(
            package.parent / "nvidia_pytriton.libs",
            *_libpython_directory(run_dir),
        ),
    )


def _make_executable(path: Path) -> None:
    if os.access(path, os.X_OK):
        return
    try:
        path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    except OSError as exc:
        raise LaunchError(f"{path} must be executable and cannot be made so: {exc}") from exc


def _libpython_directory(run_dir: Path) -> tuple[Path, ...]:
    """A folder holding only this Python's shared library, unless the loader finds it anyway.

    The folder Python came with may hold other libraries, which Triton must not pick up.
    """
    library = find_libpython()
    if library is None or (loader_finds_libpython() and library.parent in _SYSTEM_DIRECTORIES):
        return ()
    directory = run_dir / "lib"
    directory.mkdir()
    (directory / libpython_name()).symlink_to(library)
    return (directory,)


_SYSTEM_DIRECTORIES = (Path("/usr/lib/x86_64-linux-gnu"), Path("/usr/lib64"), Path("/usr/lib"))
