"""Become another program that ends when its parent does, even if the parent is killed.

Run as a script in front of a command: `python die_with_parent.py PARENT_PID PROGRAM ARGUMENTS`. The
kernel keeps the wish across the change of program.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
"""From linux/prctl.h: the signal this process gets when the thread that started it ends."""
NOT_STARTED_STATUS = 127
"""What shells answer for a program they cannot run."""


def main() -> int:
    """Turn into the program; returns only when that is impossible."""
    parent, argv = int(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        return NOT_STARTED_STATUS
    try:
        os.execvp(argv[0], argv)
    except OSError as exc:
        sys.stderr.write(f"{argv[0]} cannot be started: {exc.strerror}\n")
    return NOT_STARTED_STATUS


if __name__ == "__main__":
    sys.exit(main())
