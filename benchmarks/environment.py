"""Where and with what a result was measured."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import machine_cpu_s
from python_backend.gpu import Gpu
from python_backend.manifest import FILE_NAME, VERSION_DIR

_LIBRARIES = (
    *("triton-vlm", "onnxruntime", "nvidia-pytriton", "tritonclient", "fastapi", "openai"),
    *("torch", "transformers", "numpy", "onnx-ir", "tensorrt_rtx_cu13_libs"),
    *("tensorrt", "tensorrt-cu13", "cupy-cuda13x"),
)
_VECTOR_FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile")
_IDLE_CHECK_S = 2.0
_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """The machine, the software and the model of a result.

    Attributes:
        cpu: the processor's name and the vector instructions that matter here.
        gpu: name, memory and driver of the GPU that computes; empty if none does.
        num_cores: cores this program may use.
        memory_bytes: of the machine.
        kernel: name and version, without what its builder added.
        versions: of Python and of the libraries that are installed.
        revision: commit of the project, with `+` if files differ from it; empty without git.
        manifest_sha256: of the measured model's manifest.json; empty if there is no such model.
        busy_share_before: share of the machine that others used just before.
        command: the whole command line.
        started: local date and time.
    """

    cpu: str
    num_cores: int
    memory_bytes: int
    kernel: str
    versions: dict[str, str]
    revision: str
    manifest_sha256: str
    busy_share_before: float
    command: str
    started: str
    gpu: str = ""

    @property
    def slug(self) -> str:
        """The hardware in a file name."""
        name = (self.gpu or self.cpu).partition(" (")[0].lower()
        slug = re.sub("[^a-z0-9]+", "-", name).strip("-")
        return slug if self.gpu else f"{slug}-{self.num_cores}-cores"

    @property
    def in_words(self) -> str:
        """Date, hardware and system, and how busy it was."""
        gpu = f"{self.gpu}; " if self.gpu else ""
        return (
            f"{self.started}; {gpu}{self.cpu}, {self.num_cores} cores, "
            f"{self.memory_bytes / 1e9:.0f} GB, {self.kernel}. "
            f"{self.busy_share_before:.0%} of the machine was in use just before"
        )

    @property
    def software(self) -> str:
        """Versions and revision."""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return f"{versions}; revision {self.revision or 'unknown'}"

    def file_stem(self, name: str) -> str:
        """Name of the files of a result: what was measured, on which hardware, in which month."""
        return f"{name}_{self.slug}_{self.started[:7].replace('-', '')}"


def describe(model_folder: Path | None, command: str, gpu: Gpu | None = None) -> Environment:
    """Look at the machine; takes `_IDLE_CHECK_S`.

    Args:
        model_folder: the built model that is measured, None if there is not one.
        command: the whole command line.
        gpu: that computes, None if the processor does.
    """
    manifest = model_folder and (model_folder / VERSION_DIR / FILE_NAME).read_bytes()
    pages, page_bytes = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return Environment(
        cpu=_cpu(),
        num_cores=len(os.sched_getaffinity(0)),
        memory_bytes=pages * page_bytes,
        kernel=f"{platform.system()} {platform.release().partition('-')[0]}",
        versions=_versions(),
        revision=_revision(),
        manifest_sha256=hashlib.sha256(manifest).hexdigest() if manifest else "",
        busy_share_before=busy_share(),
        command=command,
        started=time.strftime("%Y-%m-%d %H:%M %Z"),
        gpu=_in_words(gpu) if gpu else "",
    )


def _in_words(gpu: Gpu) -> str:
    memory = f"{gpu.memory_bytes / 1e9:.0f} GB" if gpu.memory_bytes else "the host's memory"
    return f"{gpu.name} ({memory}, driver {gpu.driver})"


def busy_share() -> float:
    """Share of all cores in use while this program waits."""
    before, start = machine_cpu_s(), time.monotonic()
    time.sleep(_IDLE_CHECK_S)
    busy_s = machine_cpu_s() - before
    return busy_s / (time.monotonic() - start) / (os.cpu_count() or 1)


def _cpu() -> str:
    fields = {
        key.strip(): value.strip()
        for key, _, value in (
            line.partition(":")
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        )
    }
    flags = set(fields.get("flags", "").split())
    vector = ", ".join(flag for flag in _VECTOR_FLAGS if flag in flags)
    name = fields.get("model name", platform.machine())
    family = f"family {fields.get('cpu family', '?')} model {fields.get('model', '?')}"
    return f"{name} ({family}; {vector})"


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _revision() -> str:
    def git(*arguments: str) -> str:
        result = subprocess.run(
            ["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=True
        )
        return result.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return ""
