"""How a request's image embeddings reach the decoder graph: in place of tokens, or by cross-attention.

Dimension letters: S prompt tokens, I image-embedding rows, H their size, X rows up to the last with images.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from python_backend import tensor_names as names
from python_backend.arrays import Array
from python_backend.errors import InvalidRequestError
from python_backend.families.base import PreparedPrompt
from python_backend.kv_cache import KVCache
from python_backend.runtimes.base import EngineRuntime


class ImageInputs(ABC):
    """What a decoder graph is fed because of images. Owned by the engine thread."""

    @abstractmethod
    def check(self, prompt: PreparedPrompt, embeds: Array) -> None:
        """Raise `InvalidRequestError` unless a request's embeddings [I, H] fit the graph and the prompt."""

    @abstractmethod
    def prefill(
        self, slot: int, prompt: PreparedPrompt, embeds: Array, start: int, stop: int
    ) -> dict[str, Array]:
        """Feeds for the prompt's tokens `start` to `stop`, which are computed in cache row `slot`."""

    @abstractmethod
    def decode(self, prompts: Sequence[PreparedPrompt], num_tokens: int) -> dict[str, Array]:
        """Feeds for `num_tokens` generated tokens in each of the first rows, whose prompts these are."""


def image_inputs(
    decoder: EngineRuntime, cache: KVCache, cross_attention: EngineRuntime | None
) -> ImageInputs:
    """What the graph `decoder` needs.

    Args:
        decoder: the decoder graph.
        cache: its rows.
        cross_attention: the graph that fills what `decoder` only reads, if it reads any.
    """
    if cross_attention is None:
        return MergedEmbeds(decoder)
    return CrossAttention(cross_attention, cache)


class MergedEmbeds(ImageInputs):
    """Each embedding takes the place of one prompt token."""

    def __init__(self, decoder: EngineRuntime) -> None:
        spec = decoder.spec.input("image_embeds")
        # A graph input cannot be empty; text rows never look at this one.
        self._none = decoder.zeros((1, int(spec.shape[1])), spec.dtype)

    def check(self, prompt: PreparedPrompt, embeds: Array) -> None:
        shape = (prompt.num_image_tokens, self._none.shape[1])
        if embeds.dtype != self._none.dtype or embeds.shape != shape:
            raise InvalidRequestError(
                f"{names.IMAGE_EMBEDS} is {embeds.dtype} {list(embeds.shape)}; a prompt with {shape[0]} "
                f"image tokens needs {self._none.dtype} {list(shape)}",
                param=names.IMAGE_EMBEDS,
            )

    def prefill(
        self, slot: int, prompt: PreparedPrompt, embeds: Array, start: int, stop: int
    ) -> dict[str, Array]:
        return {
            "image_index": prompt.image_index[None, start:stop],
            "image_embeds": embeds if len(embeds) else self._none,
        }

    def decode(self, prompts: Sequence[PreparedPrompt], num_tokens: int) -> dict[str, Array]:
        image_index = np.full((len(prompts), num_tokens), -1)
        return {"image_index": image_index, "image_embeds": self._none}


class CrossAttention(ImageInputs):
    """Some layers attend to the embeddings, whose keys and values lie in the cache row.

    A generated token sees what the prompt's last token sees. Rows behind the last one that has images are not
    fed at all, so the layers cost a step without images nothing.

    Args:
        runtime: the graph from embeddings to keys and values.
        cache: of the decoder.
    """

    def __init__(self, runtime: EngineRuntime, cache: KVCache) -> None:
        self._runtime, self._cache = runtime, cache
        spec = runtime.spec.input("image_embeds")
        self._dtype, self._hidden_size = spec.dtype, int(spec.shape[1])
        first = next(iter(runtime.spec.aliases.values()))
        self._capacity = int(runtime.spec.input(first).shape[2])

    def check(self, prompt: PreparedPrompt, embeds: Array) -> None:
        if (
            embeds.dtype != self._dtype
            or embeds.ndim != 2
            or embeds.shape[1] != self._hidden_size
            or len(embeds) > self._capacity
            or (len(embeds) > 0) != (prompt.num_image_tokens > 0)
        ):
            raise InvalidRequestError(
                f"{names.IMAGE_EMBEDS} is {embeds.dtype} {list(embeds.shape)}; a prompt with "
                f"{prompt.num_image_tokens} images needs {self._dtype} [rows, {self._hidden_size}], at most "
                f"{self._capacity} rows, and none without images",
                param=names.IMAGE_EMBEDS,
            )
        seen, shape = prompt.cross_range, (len(prompt.token_ids), 2)
        if seen is None or seen.dtype != "int64" or seen.shape != shape:
            found = "missing" if seen is None else f"{seen.dtype} {list(seen.shape)}"
            raise InvalidRequestError(
                f"{names.CROSS_RANGE} is {found}; it must be int64 {list(shape)}",
                param=names.CROSS_RANGE,
            )
        if seen.min() < 0 or seen.max() > len(embeds):
            raise InvalidRequestError(
                f"{names.CROSS_RANGE} has values from {seen.min()} to {seen.max()}; they must be from 0 to "
                f"{len(embeds)}",
                param=names.CROSS_RANGE,
            )

    def prefill(
        self, slot: int, prompt: PreparedPrompt, embeds: Array, start: int, stop: int
    ) -> dict[str, Array]:
        if start == 0:
            self._cache.set_cross_length(slot, len(embeds))
            if len(embeds):
                self._runtime.run({"image_embeds": embeds}, self._cache.view(slot, slot + 1))
        return self._feeds(slot, [_seen(prompt)[start:stop]])

    def decode(self, prompts: Sequence[PreparedPrompt], num_tokens: int) -> dict[str, Array]:
        return self._feeds(0, [_seen(prompt)[-1:].repeat(num_tokens, axis=0) for prompt in prompts])

    def _feeds(self, first_row: int, ranges: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        lengths = self._cache.cross_lengths(first_row, first_row + len(ranges))
        return {"cross_range": np.stack(ranges)[: len(lengths)], "cross_lengths": lengths}


def _seen(prompt: PreparedPrompt) -> np.ndarray:
    assert prompt.cross_range is not None  # `check` refuses a prompt without it
    return prompt.cross_range
