"""Start the language model where the vision tower's training ended.

Looking up in an image what a question names is what a small language model learns last, by a sudden insight
after thousands of steps. So it starts with that insight: a word for something that is seen gets the direction
in which the tower's head looks for it, and attention starts out as likeness, queries and keys being alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from perception import COLOUR, COLOUR_NAMES, NUM_CLASSES, PLACE, SHAPE, PerceptionHead
from pictures import PLACES, SHAPES
from torch import Tensor, nn

LIKENESS = 2.0
"""Times the usual size of query and key weights: how sharply attention starts out."""


def _seen_words(head: PerceptionHead) -> Iterator[tuple[str, Tensor]]:
    """Words and the directions in which what they name is found."""
    classes = head.linear.weight.detach().split(NUM_CLASSES)

    def directions(label: int) -> Tensor:
        rows = classes[label][1:]  # without "nothing"
        return rows - rows.mean(0)

    yield from zip(COLOUR_NAMES, directions(COLOUR), strict=True)
    for name, direction in zip(SHAPES, directions(SHAPE), strict=True):
        yield name, direction
        yield "crosses" if name == "cross" else f"{name}s", direction
    places = directions(PLACE)
    for word in sorted(
        {word for place in PLACES for word in place.split()} - {"in", "on", "at", "the"}
    ):
        of_word = [i for i, place in enumerate(PLACES) if word in place.split()]
        yield word, places[of_word].mean(0)
    digits = head.digits.weight.detach()
    yield from zip("0123456789", digits - digits.mean(0), strict=True)


@torch.no_grad()
def ground(model: nn.Module, head: PerceptionHead, encode: Callable[[str], Sequence[int]]) -> None:
    """Give the words their directions and make attention begin as likeness.

    Args:
        model: a Qwen2.5-VL whose tower and head are trained and whose language model is new.
        head: of the tower.
        encode: text to token ids.
    """
    text = model.model.language_model
    norm = text.embed_tokens.weight.norm(dim=1).mean()
    for word, direction in _seen_words(head):
        for written in (word, f" {word}"):
            token_ids = encode(written)
            if len(token_ids) == 1:
                text.embed_tokens.weight[token_ids[0]] = direction * (norm / direction.norm())
    for layer in text.layers:
        attention = layer.self_attn
        keys = LIKENESS * attention.k_proj.weight
        attention.k_proj.weight.copy_(keys)
        groups = attention.num_key_value_groups
        heads = keys.view(-1, attention.head_dim, keys.shape[1])
        attention.q_proj.weight.copy_(heads.repeat_interleave(groups, 0).flatten(0, 1))
