"""How much memory a served model takes: arithmetic only, so that it can be checked by hand.

Dimension letters: R rows (max_seqs), C capacity in tokens (max_model_len), S tokens of one chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from python_backend.spec import GraphSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSize:
    """What one row of the KV cache takes, read from the decoder's contract.

    Attributes:
        token_bytes: for each token of capacity.
        row_bytes: whatever the capacity: caches that do not grow with the context.
        formula: the sum behind `token_bytes`.
    """

    token_bytes: int
    row_bytes: int
    formula: str


def cache_token_bytes(num_layers: int, num_kv_heads: int, head_dim: int, item_bytes: int) -> int:
    """Keys and values of one token in every layer."""
    return num_layers * 2 * num_kv_heads * head_dim * item_bytes


def cache_size(spec: GraphSpec, max_model_len: int) -> CacheSize:
    """What `KVCache` allocates for one row of a decoder built for `max_model_len`.

    It reads the arrays' own shapes, so layers with a sliding window count as the graphs keep them:
    with the whole context.
    """
    token_bytes = num_growing = 0
    # Cross-attention's arrays hold a row's images, however long its context is.
    row_bytes = sum(spec.input(name).num_fixed_bytes for name in spec.cross_inputs)
    heads = head_dim = item_bytes = 0
    for name in spec.aliases.values():
        tensor = spec.input(name)
        if max_model_len not in tensor.shape:
            row_bytes += tensor.num_fixed_bytes
            continue
        per_token = tensor.num_fixed_bytes // max_model_len
        token_bytes += per_token
        num_growing += 1
        heads, head_dim = int(tensor.shape[1]), int(tensor.shape[3])
        item_bytes = per_token // (heads * head_dim)
    layers = num_growing // 2
    formula = f"{num_growing} arrays"
    if token_bytes == cache_token_bytes(layers, heads, head_dim, item_bytes):
        formula = f"{layers} layers x 2 x {heads} KV heads x {head_dim} x {item_bytes} B"
    return CacheSize(token_bytes=token_bytes, row_bytes=row_bytes, formula=formula)


@dataclass(frozen=True, slots=True, kw_only=True)
class Activations:
    """What the decoder's intermediate results take: an estimate of the largest that live together.

    Attributes:
        hidden_size: of the decoder.
        intermediate_size: of its MLP.
        vocab_size: of its logits.
        score_heads: heads whose scores are whole arrays [heads, S, C]; 0 where attention is fused.
        item_bytes: of one number.
    """

    hidden_size: int
    intermediate_size: int
    vocab_size: int
    score_heads: int
    item_bytes: int

    def num_bytes(self, max_seqs: int, max_model_len: int, chunk: int) -> int:
        """The larger of a prefill chunk and a decode step of all rows, and the logits."""
        tokens = max(chunk, max_seqs)
        # Attention's input, queries, output and residual; the MLP's two gates.
        per_token = (4 * self.hidden_size + 2 * self.intermediate_size) * self.item_bytes
        scores = self.score_heads * tokens * max_model_len * self.item_bytes
        return tokens * per_token + scores + max_seqs * self.vocab_size * 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Memory of one model on one device.

    Attributes:
        device: what a person calls it.
        precision: of weights and cache there.
        weights_bytes: of all graphs.
        cache: of the decoder.
        activations: of the decoder.
        fixed_bytes: what does not depend on the limits: programs, libraries, the encoder's work.
        chunk: prompt tokens computed at once.
        free_bytes: what the device has left.
    """

    device: str
    precision: str
    weights_bytes: int
    cache: CacheSize
    activations: Activations
    fixed_bytes: int
    chunk: int
    free_bytes: int

    def cache_bytes(self, max_seqs: int, max_model_len: int) -> int:
        """The KV cache when every row is full."""
        return max_seqs * (max_model_len * self.cache.token_bytes + self.cache.row_bytes)

    def activation_bytes(self, max_seqs: int, max_model_len: int) -> int:
        """The decoder's intermediate results."""
        return self.activations.num_bytes(max_seqs, max_model_len, self.chunk)

    def total_bytes(self, max_seqs: int, max_model_len: int) -> int:
        """Everything together."""
        return (
            self.weights_bytes
            + self.cache_bytes(max_seqs, max_model_len)
            + self.activation_bytes(max_seqs, max_model_len)
            + self.fixed_bytes
        )

    def fits(self, max_seqs: int, max_model_len: int) -> bool:
        """Whether it all fits in what is free."""
        return self.total_bytes(max_seqs, max_model_len) <= self.free_bytes

    def most_seqs(self, max_model_len: int) -> int:
        """The largest `max_seqs` that fits, 0 if not even one does."""
        if not self.fits(1, max_model_len):
            return 0
        low, high = 1, 2
        while self.fits(high, max_model_len):
            low, high = high, high * 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.fits(middle, max_model_len) else (low, middle)
        return low


SEQS = (1, 4, 8, 16, 32, 64)
LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768)


def lengths_up_to(limit: int, built: int | None) -> list[int]:
    """Columns of the table: usual context lengths the model has, its own limit or what was built."""
    own = built or min(limit, LENGTHS[-1])
    return sorted({length for length in LENGTHS if length <= limit} | {own})


@dataclass(frozen=True, slots=True)
class Cell:
    """One combination of limits."""

    max_seqs: int
    max_model_len: int
    total_bytes: int
    fits: bool


def table(footprint: Footprint, lengths: Sequence[int]) -> list[list[Cell]]:
    """A row per `max_seqs`, a column per `max_model_len`."""
    return [
        [
            Cell(seqs, length, footprint.total_bytes(seqs, length), footprint.fits(seqs, length))
            for length in lengths
        ]
        for seqs in SEQS
    ]
