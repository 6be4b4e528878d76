"""The Chromium that the page's tests drive; `python tests/page/chromium.py` gets one if there is none.

The system's own comes first, then the one that Playwright downloads. Where its host cannot be
reached, root gets the package of Debian and its kin.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome")
# Inside the environment, which `make clean` removes.
PLAYWRIGHT_ENVIRONMENT = {"PLAYWRIGHT_BROWSERS_PATH": "0"}
DOWNLOAD = [sys.executable, "-m", "playwright", "install", "--only-shell", "chromium"]
PACKAGE = "apt-get update -qq && apt-get install -qq --yes --no-install-recommends chromium"


def system_chromium() -> str | None:
    """Path of an installed Chromium."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def main() -> str | None:
    """Install what is missing; what to say if that is not possible."""
    if system_chromium():
        return None
    sys.stdout.write("Getting Chromium for the tests of the page, once\n")
    environment = os.environ | PLAYWRIGHT_ENVIRONMENT | {"DEBIAN_FRONTEND": "noninteractive"}
    commands = [DOWNLOAD]
    if os.geteuid() == 0 and shutil.which("apt-get"):
        commands.append(["sh", "-c", PACKAGE])
    reasons = []
    for command in commands:
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        if result.returncode == 0:
            return None
        reasons.append(result.stderr.strip())
    return "\n".join((*reasons, "No Chromium: THE PAGE IS NOT TESTED. Install it, or try again."))


if __name__ == "__main__":
    sys.exit(main())
