"""Hugging Face's own server."""

from __future__ import annotations

import json
from typing import ClassVar

from benchmarks.peers.engine import Engine, ServerEngine
from benchmarks.peers.peer import OFFLINE, Peer


class TransformersServe(Peer):
    """`transformers serve` in float32."""

    name: ClassVar[str] = "transformers"
    is_served: ClassVar[bool] = True
    max_concurrency: ClassVar[int | None] = 4

    def set_up(self) -> None:
        self._python = self._work.environment(self.name)

    def start(self, *, caches: bool) -> Engine:
        model = self._checkpoint.folder
        command = [self._python.parent / "transformers", "serve", model]
        command += ["--device", "cpu", "--dtype", "float32", "--host", "127.0.0.1"]
        return ServerEngine(
            self.name,
            lambda port: [*command, "--port", str(port)],
            env={**OFFLINE, "OMP_NUM_THREADS": str(self._checkpoint.num_threads)},
            model=str(model),
            # Without an end-of-sequence token: there is no `ignore_eos`.
            extra_body={"generation_config": json.dumps({"do_sample": False})},
            logs=self._work.logs,
        )

    @property
    def version(self) -> str:
        return self._pinned(self.name, "transformers")
