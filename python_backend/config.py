"""`EngineConfig`: how to run what was built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from python_backend.errors import BundleError


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Settings of a running engine; what the model was built for wins.

    Attributes:
        max_num_seqs: choices generated at once, at most (rows of the KV cache).
        max_num_batched_tokens: prompt tokens computed between two decode steps, at most.
        max_waiting: requests that may wait for a slot before new ones are refused.
        num_threads: threads of one operator; 0 for one per core, which the stages then use in turn.
        encoder_cache_bytes: image embeddings kept for pictures that come again.
        max_encoder_patches: vision patches of several waiting requests that go through one call.
        max_cuda_graphs: sizes of decode steps that a GPU replays instead of launching their kernels one by
            one; 0 for none.
        prefix_cache: whether rows of the KV cache keep what they hold for prompts that begin alike.
        max_draft_tokens: tokens that a decode step with drafts may compute, the next one of each choice and
            padding included; 0 for no drafts. Only with ONNX Runtime.
    """

    max_num_seqs: int = 16
    max_num_batched_tokens: int = 512
    max_waiting: int = 128
    num_threads: int = 0
    encoder_cache_bytes: int = 256 * 2**20
    max_encoder_patches: int = 1024
    max_cuda_graphs: int = 64
    prefix_cache: bool = True
    max_draft_tokens: int = 4

    def __post_init__(self) -> None:
        for name in (
            "max_num_seqs",
            "max_num_batched_tokens",
            "max_waiting",
            "max_encoder_patches",
        ):
            if getattr(self, name) < 1:
                raise BundleError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("num_threads", "encoder_cache_bytes", "max_cuda_graphs", "max_draft_tokens"):
            if getattr(self, name) < 0:
                raise BundleError(f"{name} is {getattr(self, name)}; it must not be negative")

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> EngineConfig:
        """The config in the `parameters` of a config.pbtxt; other keys are not looked at.

        Raises:
            BundleError: a value is not an integer in range, or not true or false.
        """
        values: dict[str, Any] = {}
        for field in fields(cls):
            if field.name in parameters:
                is_bool = isinstance(field.default, bool)
                values[field.name] = _read(field.name, parameters[field.name], is_bool)
        return cls(**values)


def _read(name: str, text: str, is_bool: bool) -> int | bool:
    if is_bool:
        if text not in ("true", "false"):
            raise BundleError(f"parameter {name} is {text!r}; it must be true or false")
        return text == "true"
    try:
        return int(text)
    except ValueError:
        raise BundleError(f"parameter {name} is {text!r}; it must be an integer") from None
