"""OpenVINO GenAI's continuous batching, in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from benchmarks.peers.engine import Engine, ProgramEngine
from benchmarks.peers.own import PROGRAMS
from benchmarks.peers.peer import MAX_NUM_SEQS, OFFLINE, Peer


class OpenVinoGenAI(Peer):
    """`ContinuousBatchingPipeline`; with fp32 weights, everything else is fp32 too."""

    name: ClassVar[str] = "openvino"
    is_served: ClassVar[bool] = False
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "int8", "int4")

    def set_up(self) -> None:
        self._python = self._work.environment(self.name)
        self._model = self._work.once(
            f"models/{self.name}/{self._checkpoint.name}",
            self._conversion_key(self.name),
            self._export,
        )

    def _export(self, folder: Path) -> None:
        export = [self._python.parent / "optimum-cli", "export", "openvino"]
        export += ["--model", self._checkpoint.folder, "--task", "image-text-to-text"]
        export += ["--weight-format", self._checkpoint.precision]
        self._work.command("openvino-export", [*export, folder], OFFLINE)

    def start(self, *, caches: bool) -> Engine:
        program = [self._python, PROGRAMS / "answer_openvino.py", self._model]
        program += ["--max-num-seqs", str(MAX_NUM_SEQS)]
        if caches:
            program.append("--caches")
        if self._checkpoint.precision == "fp32":
            program.append("--exact")
        return ProgramEngine(
            self.name,
            program,
            env=OFFLINE,
            prompt=self._checkpoint.prompt,
            text=self._checkpoint.text,
            logs=self._work.logs,
        )

    @property
    def version(self) -> str:
        return self._pinned(self.name, "openvino-genai")
