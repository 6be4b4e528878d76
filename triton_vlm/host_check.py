"""Can this Python run the project? Needs nothing installed: the Makefile runs it as a script.

The Makefile asks each Python it finds and takes the first that passes, so a person learns within a
second, and in a sentence, that something is missing, not after a download.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import shutil
import sys
import sysconfig
from pathlib import Path

MIN_PYTHON = (3, 11)
MAX_PYTHON = (3, 12)
"""NumPy 1, which the Python stub of the packaged Triton needs, has no wheels for later ones."""
MIN_GLIBC = (2, 35)
"""What the packaged Triton was linked against."""


def libpython_name() -> str:
    """File name of the shared library of this Python."""
    return f"libpython{sys.version_info[0]}.{sys.version_info[1]}.so.1.0"


def find_libpython() -> Path | None:
    """The shared library that belongs to this Python, None when it was installed without one."""
    names = ("LIBDIR", "LIBPL")
    directories = [sysconfig.get_config_var(name) for name in names]
    directories.append(os.path.join(sys.base_prefix, "lib"))
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    for directory in directories:
        for path in (
            Path(directory or "/nonexistent", libpython_name()),
            Path(directory or "/nonexistent", multiarch, libpython_name()),
        ):
            if path.exists():
                return path
    return None


def loader_finds_libpython() -> bool:
    """Whether the dynamic loader finds the shared library of this Python by its name."""
    try:
        ctypes.CDLL(libpython_name())
    except OSError:
        return False
    return True


def python_problem(version: tuple[int, ...]) -> str | None:
    """Why Python `version` cannot be used, None when it can."""
    if MIN_PYTHON <= version[:2] <= MAX_PYTHON:
        return None
    return (
        f"this is Python {version[0]}.{version[1]}; triton-vlm runs on Python 3.11 and 3.12: "
        "install one of them, or name it with PYTHON=/path/to/python3.11"
    )


def environment_problem() -> str | None:
    """Why this Python cannot make virtual environments, None when it can."""
    if importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip"):
        return None
    return (
        "this Python cannot make virtual environments: install its venv module "
        f"(Debian, Ubuntu: apt install python{sys.version_info[0]}.{sys.version_info[1]}-venv)"
    )


def triton_problem() -> str | None:
    """Why Triton cannot run with this Python on this machine, None when it can."""
    if shutil.which("tritonserver"):
        return None
    machine = (sys.platform, platform.machine())
    if machine != ("linux", "x86_64"):
        return (
            f"the packaged Triton runs on Linux x86-64, this is {' '.join(machine)}: "
            "use a machine or container that has tritonserver in PATH"
        )
    libc, version = platform.libc_ver()
    if libc != "glibc" or tuple(int(part) for part in version.split(".")[:2]) < MIN_GLIBC:
        return (
            f"the packaged Triton needs glibc 2.35 or newer, this is {libc or 'another libc'} "
            f"{version}: use a newer distribution or a container that has tritonserver in PATH"
        )
    if find_libpython() or loader_finds_libpython():
        return None
    return (
        f"Triton's Python backend needs {libpython_name()}, which this Python came without "
        f"(Debian, Ubuntu: apt install libpython{sys.version_info[0]}.{sys.version_info[1]})"
    )


def main() -> int:
    """Say what is missing, if anything; exit status 0 when nothing is."""
    problem = python_problem(sys.version_info[:2]) or environment_problem() or triton_problem()
    if problem:
        sys.stderr.write(f"{sys.executable}: {problem}\n")
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
