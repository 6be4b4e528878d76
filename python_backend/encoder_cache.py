"""Image embeddings by content hash, least recently used out first, bounded in bytes."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from python_backend.arrays import Array


class EncoderCache:
    """Embeddings of pictures seen before. Owned by one thread.

    Args:
        max_bytes: memory it may hold; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[str, Array] = OrderedDict()
        self.num_bytes = 0
        self.num_hits = 0
        self.num_misses = 0

    def get(self, image_hash: str) -> Array | None:
        """The embeddings of an image, or None; counts as a use."""
        embeds = self._entries.get(image_hash)
        if embeds is None:
            self.num_misses += 1
            return None
        self.num_hits += 1
        self._entries.move_to_end(image_hash)
        return embeds

    def put(self, image_hash: str, embeds: Array) -> None:
        """Keep embeddings, in place of the ones unused for longest; a NumPy array is frozen."""
        if embeds.nbytes > self._max_bytes or image_hash in self._entries:
            return
        if isinstance(embeds, np.ndarray):  # CuPy cannot freeze an array
            embeds.flags.writeable = False
        self._entries[image_hash] = embeds
        self.num_bytes += embeds.nbytes
        while self.num_bytes > self._max_bytes:
            self.num_bytes -= self._entries.popitem(last=False)[1].nbytes
