"""The project itself, served and offline."""

from __future__ import annotations

import sys
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

from benchmarks.peers import programs
from benchmarks.peers.engine import Engine, ProgramEngine, StackEngine
from benchmarks.peers.peer import MAX_MODEL_LEN, OFFLINE, Peer
from triton_vlm.stack import ServingStack

PROGRAMS = Path(programs.__file__).parent
_ROOT = Path(__file__).resolve().parent.parent.parent


class TritonVlm(Peer):
    """The proxy, Triton and its three stages, as `triton-vlm serve` starts them."""

    name: ClassVar[str] = "triton-vlm"
    is_served: ClassVar[bool] = True
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "int8", "int4")

    @cached_property
    def repository(self) -> Path:
        """The model repository with the built checkpoint."""
        return self._work.root / "model_repository" / self._checkpoint.precision

    def set_up(self) -> None:
        arguments = ["--model", self._checkpoint.folder, "--output", self.repository]
        arguments += ["--precision", self._checkpoint.precision]
        arguments += ["--max-model-len", str(MAX_MODEL_LEN)]
        self._work.command("build", [sys.executable, "-m", "builders.build", *arguments])

    def start(self, *, caches: bool) -> Engine:
        """Its cache of pictures has no switch; without `caches` no picture comes twice."""
        logs = self._work.logs / self.name
        return StackEngine(
            ServingStack(self.repository, self._checkpoint.folder.name, log_dir=logs)
        )

    @property
    def version(self) -> str:
        return f"triton-vlm {version('triton-vlm')}"


class Offline(TritonVlm):
    """The same engine in one process."""

    name: ClassVar[str] = "triton-vlm offline"
    is_served: ClassVar[bool] = False

    def start(self, *, caches: bool) -> Engine:
        folder = self.repository / self._checkpoint.folder.name
        return ProgramEngine(
            self.name,
            [sys.executable, PROGRAMS / "answer_offline.py", folder],
            # This checkout, whatever the environment has installed.
            env={**OFFLINE, "PYTHONPATH": str(_ROOT)},
            prompt=self._checkpoint.prompt,
            text=self._checkpoint.text,
            logs=self._work.logs,
        )
