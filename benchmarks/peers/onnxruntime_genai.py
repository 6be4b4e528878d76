"""onnxruntime-genai, the runtime that this project uses under another engine, in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from benchmarks.peers.engine import Engine, ProgramEngine
from benchmarks.peers.own import PROGRAMS
from benchmarks.peers.peer import MAX_MODEL_LEN, OFFLINE, Peer
from benchmarks.workload import PICTURE_SIZE

_EXPORT = PROGRAMS / "export_onnxruntime.py"


class OnnxRuntimeGenAI(Peer):
    """Its `Generator`, one request after another."""

    name: ClassVar[str] = "onnxruntime-genai"
    is_served: ClassVar[bool] = False
    max_concurrency: ClassVar[int | None] = 4

    def set_up(self) -> None:
        self._python = self._work.environment(self.name)
        self._model = self._work.once(
            f"models/{self.name}/{self._checkpoint.name}",
            self._conversion_key(self.name, _EXPORT),
            self._export,
        )

    def _export(self, folder: Path) -> None:
        export = [self._python, _EXPORT, self._checkpoint.folder, folder]
        export += [str(self._checkpoint.num_threads), str(PICTURE_SIZE)]
        self._work.command("onnxruntime-genai-export", export, OFFLINE)

    def start(self, *, caches: bool) -> Engine:
        """It has no caches."""
        return ProgramEngine(
            self.name,
            [self._python, PROGRAMS / "answer_onnxruntime.py", self._model, str(MAX_MODEL_LEN)],
            env=OFFLINE,
            prompt=self._checkpoint.prompt,
            text=self._checkpoint.text,
            logs=self._work.logs,
        )

    @property
    def version(self) -> str:
        return self._pinned(self.name, "onnxruntime-genai")
