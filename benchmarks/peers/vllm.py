"""vLLM's OpenAI server on a CPU."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import ClassVar

from benchmarks.peers.engine import Engine, ServerEngine
from benchmarks.peers.peer import MAX_MODEL_LEN, MAX_NUM_SEQS, OFFLINE, Peer

_TCMALLOC = "libtcmalloc_minimal.so.4"
_MAX_PIXELS = 401408
"""Start-up profiles a picture of this size; with the model's own limit that takes many minutes."""


class Vllm(Peer):
    """`vllm.entrypoints.openai.api_server` with its compiled model, every core and tcmalloc."""

    name: ClassVar[str] = "vllm"
    is_served: ClassVar[bool] = True

    def set_up(self) -> None:
        self._python = self._work.environment(self.name)
        self._tcmalloc = self._work.once("tcmalloc", "2", self._get_tcmalloc)

    def _get_tcmalloc(self, folder: Path) -> None:
        """Its documentation asks for it; PyPI has none, so it is taken out of Debian's package."""
        fetch = f"cd '{folder}' && apt-get download libtcmalloc-minimal4 && dpkg-deb -x *.deb ."
        self._work.command("tcmalloc", ["bash", "-c", fetch])
        (library,) = folder.glob(f"usr/lib/*/{_TCMALLOC}")
        shutil.copy(library, folder / _TCMALLOC)

    def start(self, *, caches: bool) -> Engine:
        openmp = self._python.parent.parent / "lib" / "libiomp5.so"
        cores = f"0-{self._checkpoint.num_threads - 1}"
        env = {
            **OFFLINE,
            "LD_PRELOAD": f"{openmp}:{self._tcmalloc / _TCMALLOC}",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": cores,
            "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CACHE_ROOT": str(self._work.root / "vllm-cache"),
        }
        flags = ["--dtype", "float32", "--limit-mm-per-prompt", '{"image": 1, "video": 0}']
        flags += ["--max-model-len", str(MAX_MODEL_LEN), "--max-num-seqs", str(MAX_NUM_SEQS)]
        flags += ["--mm-processor-kwargs", f'{{"max_pixels": {_MAX_PIXELS}}}']
        if not caches:
            flags += ["--no-enable-prefix-caching", "--mm-processor-cache-gb", "0"]
        server = [self._python, "-m", "vllm.entrypoints.openai.api_server"]
        model = self._checkpoint.folder
        return ServerEngine(
            self.name,
            lambda port: [*server, "--model", model, "--port", str(port), *flags],
            env=env,
            model=str(model),
            extra_body={"ignore_eos": True, "return_token_ids": True},
            logs=self._work.logs,
        )

    @property
    def version(self) -> str:
        return self._pinned(self.name, "vllm-cpu")
