"""Stages that each use every core take turns instead of fighting over them."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from io import FileIO
from pathlib import Path
from types import TracebackType

from python_backend.errors import EngineError


class Turns:
    """A lock between processes that goes around: whoever waits gets it before whoever had it last.

    Two file locks. `turn` is held by the one that computes, `seat` by the one that is next; who ends its turn
    and wants another must first get the seat, which the one that waits holds. The kernel frees both
    when a process ends, however it ends.

    Args:
        name: those with the same name, of one user on one machine, share the turns.

    Raises:
        EngineError: a lock file cannot be opened, or is another user's.
    """

    def __init__(self, name: str) -> None:
        digest = hashlib.sha256(name.encode()).hexdigest()[:16]
        stem = Path(tempfile.gettempdir()) / f"triton-vlm-{os.getuid()}-{digest}"
        self._seat = _open(stem.with_suffix(".seat"))
        self._turn = _open(stem.with_suffix(".turn"))

    def __enter__(self) -> None:
        fcntl.flock(self._seat, fcntl.LOCK_EX)
        try:
            fcntl.flock(self._turn, fcntl.LOCK_EX)
        finally:
            fcntl.flock(self._seat, fcntl.LOCK_UN)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        fcntl.flock(self._turn, fcntl.LOCK_UN)

    def close(self) -> None:
        """Leave the round; a second call does nothing."""
        self._seat.close()
        self._turn.close()


def _open(path: Path) -> FileIO:
    try:
        file = FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+")
    except OSError as error:
        raise EngineError(f"lock file {path}: {error.strerror}; remove it or set TMPDIR") from error
    if os.fstat(file.fileno()).st_uid != os.getuid():
        file.close()
        raise EngineError(f"lock file {path} belongs to another user; remove it or set TMPDIR")
    return file
