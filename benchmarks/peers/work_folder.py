"""Where peers live: environments, converted checkpoints and logs, each made once."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers import torchvision_patch
from triton_vlm.child_process import ChildProcess
from triton_vlm.readiness import never

REQUIREMENTS = Path(__file__).resolve().parent / "requirements"
"""Every package of an environment with its exact version, so that pip need not resolve anything."""
_STAMP = "complete"
_STOP_GRACE_S = 10.0


@dataclass(frozen=True, slots=True)
class WorkFolder:
    """A folder that outlives the run.

    Attributes:
        root: gets everything.
    """

    root: Path

    @property
    def logs(self) -> Path:
        """Output of set-up and of servers."""
        return self.root / "logs"

    def once(self, name: str, key: str, make: Callable[[Path], None]) -> Path:
        """A folder with what `make` put there; one made with another key, or not to the end, is made again.

        Args:
            name: of the folder.
            key: changes when what is made has to change.
            make: called with the empty folder.
        """
        folder = self.root / name
        stamp = folder / _STAMP
        if not stamp.exists() or stamp.read_text(encoding="utf-8") != key:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            make(folder)
            stamp.write_text(key, encoding="utf-8")
        return folder

    def environment(self, name: str) -> Path:
        """The Python of the environment with exactly the packages of `requirements/<name>.txt`.

        Raises:
            LaunchError: pip failed.
        """
        requirements = REQUIREMENTS / f"{name}.txt"

        def make(folder: Path) -> None:
            self.command(f"{name}-venv", [sys.executable, "-m", "venv", str(folder)])
            python = folder / "bin" / "python"
            pip = [str(python), "-m", "pip", "install", "--no-deps", "--no-compile", "-r"]
            self.command(f"{name}-pip", [*pip, str(requirements)])
            (site_packages,) = folder.glob("lib/python*/site-packages")
            torchvision_patch.patch(site_packages)

        key = hashlib.sha256(requirements.read_bytes()).hexdigest() + sys.version
        return self.once(f"environments/{name}", key, make) / "bin" / "python"

    def command(
        self, name: str, argv: Sequence[str | Path], env: Mapping[str, str] | None = None
    ) -> None:
        """Run a program to its end; its output goes to `logs/<name>.log`.

        Raises:
            LaunchError: it failed, with the end of its log.
        """
        process = ChildProcess(
            name,
            argv,
            env=None if env is None else {**os.environ, **env},
            log_path=self.logs / f"{name}.log",
        )
        process.start()
        try:
            if process.wait(never):
                process.check()
        finally:
            process.stop(_STOP_GRACE_S)
