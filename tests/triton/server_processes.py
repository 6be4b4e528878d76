"""What the processes of a served stack hold: open files and memory, as Linux counts them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from triton_vlm.stack import ServingStack

_PSS = "Pss:"


@dataclass(frozen=True)
class Usage:
    """Of the proxy, Triton and Triton's stages together.

    Attributes:
        num_files: open file descriptors.
        memory_bytes: proportional set size; a page that several processes share is counted once.
    """

    num_files: int
    memory_bytes: int


def usage_of(stack: ServingStack) -> Usage:
    """What is held at this moment; each program's session has all processes that it started."""
    sessions = {stack.proxy.process.pid, stack.triton.process.pid}
    folders = [
        path.parent for path in Path("/proc").glob("[0-9]*/stat") if _session(path) in sessions
    ]
    return Usage(
        num_files=sum(1 for folder in folders for _ in (folder / "fd").iterdir()),
        memory_bytes=sum(_memory_bytes(folder) for folder in folders),
    )


def _session(stat: Path) -> int | None:
    try:
        text = stat.read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):  # ended meanwhile
        return None
    # The program's name is in parentheses and may have spaces; state, parent, group and session follow.
    return int(text.rpartition(")")[2].split()[3])


def _memory_bytes(folder: Path) -> int:
    lines = (folder / "smaps_rollup").read_text(encoding="utf-8").splitlines()
    (line,) = (line for line in lines if line.startswith(_PSS))
    return int(line.split()[1]) * 1024
