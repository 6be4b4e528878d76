"""The encoder stage: pixel tensors of several requests to image embeddings, each picture once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from python_backend.arrays import Array, array_module
from python_backend.encoder_cache import EncoderCache
from python_backend.families.base import Features, ModelFamily
from python_backend.runtimes.base import EngineRuntime
from python_backend.spec import GraphSpec


@dataclass(frozen=True, slots=True)
class EncoderImage:
    """One picture to encode.

    Attributes:
        features: the family's tensors of it.
        image_hash: its content hash.
    """

    features: Features
    image_hash: str


def no_image_embeds(decoder: GraphSpec) -> np.ndarray:
    """What a prompt without images hands to the graph `decoder`: [0, hidden_size]."""
    spec = decoder.input("image_embeds")
    return np.empty((0, int(spec.shape[1])), spec.dtype)


class VisionEncoder:
    """Encodes pictures, through a cache. Owned by one thread.

    Embeddings stay where the graph computes.

    Args:
        family: plans the graph's inputs.
        runtime: the vision-encoder graph.
        cache: embeddings of pictures seen before.
        max_patches: pictures and frames of videos share an engine call up to this size; a larger one goes
            alone.
    """

    def __init__(
        self, family: ModelFamily, runtime: EngineRuntime, cache: EncoderCache, max_patches: int
    ) -> None:
        self._family = family
        self._runtime = runtime
        self.cache = cache
        self._max_patches = max_patches
        output = runtime.spec.computed_outputs[0]
        self._output, self._hidden_size = output.name, int(output.shape[1])
        self._dtype = output.dtype

    def encode(self, images: Sequence[EncoderImage]) -> list[Array]:
        """Embeddings [num_tokens, hidden_size] of each picture; read-only, they may be cached."""
        found: dict[str, Array] = {}
        misses: dict[str, EncoderImage] = {}
        for image in images:
            embeds = self.cache.get(image.image_hash)
            if embeds is not None:
                found[image.image_hash] = embeds
            else:
                misses[image.image_hash] = image  # the same picture twice is encoded once
        frames = [
            (image_hash, frame)
            for image_hash, image in misses.items()
            for frame in self._family.split_frames(image.features)
        ]
        encoded: dict[str, list[Array]] = {image_hash: [] for image_hash in misses}
        for group in self._groups(frames):
            features = [frame for _, frame in group]
            outputs = self._runtime.run(self._family.encoder_feeds(features))[self._output]
            parts = self._family.split_embeds(outputs, features)
            for (image_hash, _), part in zip(group, parts, strict=True):
                # A view would keep the whole call's output alive.
                encoded[image_hash].append(part.copy())
        for image_hash, parts in encoded.items():
            embeds = parts[0] if len(parts) == 1 else array_module(parts[0]).concatenate(parts)
            found[image_hash] = embeds
            self.cache.put(image_hash, embeds)
        return [found[image.image_hash] for image in images]

    def join(self, images: Sequence[EncoderImage], embeds: Sequence[Array]) -> Array:
        """Embeddings of a request as the decoder takes them [I, hidden_size], also when there are none."""
        if images:
            return self._family.join_embeds(embeds, [image.features for image in images])
        return np.empty((0, self._hidden_size), self._dtype)

    def _groups(self, frames: Sequence[tuple[str, Features]]) -> list[list[tuple[str, Features]]]:
        groups: list[list[tuple[str, Features]]] = []
        room = 0
        for image_hash, frame in frames:
            num_patches = self._family.num_patches(frame)
            if num_patches > room:
                groups.append([])
                room = self._max_patches
            groups[-1].append((image_hash, frame))
            room -= num_patches
        return groups

    def close(self) -> None:
        """Free the engine."""
        self._runtime.close()
