"""The interface of everything that is measured: made ready once, then started as often as needed."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from transformers import AutoTokenizer

from benchmarks.peers.engine import Engine
from benchmarks.peers.work_folder import REQUIREMENTS, WorkFolder
from benchmarks.workload import Load

MAX_NUM_SEQS = 16
"""Requests that every engine may have in flight: as many as the largest load has."""
MAX_MODEL_LEN = 2048
"""Tokens of one request, at most; the longest load has fewer."""
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Environment of everything that reads a checkpoint: it is on the disk."""


@dataclass(frozen=True)
class Checkpoint:
    """What every peer serves.

    Attributes:
        folder: laid out as on the hub.
        precision: of the weights that are computed with.
        num_threads: one per core.
    """

    folder: Path
    precision: str
    num_threads: int

    @property
    def name(self) -> str:
        """Of converted models: checkpoint and precision."""
        return f"{self.folder.name}-{self.precision}"

    @cached_property
    def _tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(self.folder)

    def prompt(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Messages as the model sees them, one placeholder per picture."""
        parts = [
            {
                **message,
                "content": [
                    {"type": "image"} if part["type"] == "image_url" else part
                    for part in message["content"]
                ]
                if not isinstance(message["content"], str)
                else message["content"],
            }
            for message in messages
        ]
        prompt: str = self._tokenizer.apply_chat_template(
            parts, tokenize=False, add_generation_prompt=True
        )
        return prompt

    def num_tokens(self, messages: Sequence[Mapping[str, Any]]) -> int:
        """Tokens of `prompt`, one per picture."""
        return len(self._tokenizer(self.prompt(messages))["input_ids"])

    def text(self, token_ids: Sequence[int]) -> str:
        """Tokens as servers send them: without special ones."""
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=True)
        return text


class Peer(ABC):
    """One program or library that serves the checkpoint.

    Attributes:
        name: on the command line and in tables.
        is_served: whether it is asked over HTTP; else it is a library in a process of its own.
        precisions: of weights it can serve.
        max_concurrency: of the loads it is measured with; None for any. For peers that answer requests
            one after another and whose figures do not depend on how many wait.

    Args:
        work: keeps what `set_up` makes.
        checkpoint: to serve.
    """

    name: ClassVar[str]
    is_served: ClassVar[bool]
    precisions: ClassVar[tuple[str, ...]] = ("fp32",)
    max_concurrency: ClassVar[int | None] = None

    def __init__(self, work: WorkFolder, checkpoint: Checkpoint) -> None:
        self._work = work
        self._checkpoint = checkpoint

    @abstractmethod
    def set_up(self) -> None:
        """Make environment and converted checkpoint, unless they are there.

        Raises:
            LaunchError: a step failed.
        """

    @abstractmethod
    def start(self, *, caches: bool) -> Engine:
        """Start it and wait until it can be asked.

        Args:
            caches: of prefixes and of pictures, on or off, where it has them.

        Raises:
            LaunchError: it ended, or was not ready in time.
        """

    def measures(self, load: Load) -> bool:
        """Whether it is measured with a load."""
        if load.mean_gap_s and not self.is_served:
            return False  # a library takes its requests together
        return self.max_concurrency is None or load.concurrency <= self.max_concurrency

    @property
    @abstractmethod
    def version(self) -> str:
        """What is measured, for the result."""

    def _pinned(self, requirements: str, package: str) -> str:
        """A package and its version in one of the requirements files."""
        lines = (REQUIREMENTS / f"{requirements}.txt").read_text(encoding="utf-8").splitlines()
        (version,) = (line.partition("==")[2] for line in lines if line.startswith(f"{package}=="))
        return f"{package} {version}"

    def _conversion_key(self, requirements: str, *programs: Path) -> str:
        """Changes when the checkpoint or the tools that convert it change."""
        files = [self._checkpoint.folder / "config.json", *programs]
        files.append(REQUIREMENTS / f"{requirements}.txt")
        return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
