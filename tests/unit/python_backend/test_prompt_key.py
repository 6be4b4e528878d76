"""Which tokens of a prompt have the keys and values of an earlier one's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from python_backend.families.base import PreparedPrompt, PromptImage
from python_backend.prompt_key import PromptKey


def _prompt(tokens, images=(), **changes):
    """Tokens of 9 are an image's; `images` are (hash, length)."""
    token_ids = np.array(tokens)
    is_image = token_ids == 9
    prompt = PreparedPrompt(
        token_ids,
        np.where(is_image, np.cumsum(is_image) - 1, -1),
        np.arange(len(tokens))[None].repeat(3, axis=0),
        images=[PromptImage(*image) for image in images],
    )
    return replace(prompt, **changes)


def _num_common(prompt, earlier, answer=(), salts=(None, None)):
    keys = [PromptKey(p, salt) for p, salt in zip((prompt, earlier), salts, strict=True)]
    return keys[0].num_common(keys[1], answer)


A, B = ("a", 2), ("b", 2)


@pytest.mark.parametrize(
    ("prompt", "earlier", "num_common"),
    [
        (_prompt([1, 2, 3]), _prompt([1, 2, 3]), 3),
        (_prompt([1, 2, 3]), _prompt([1, 2]), 2),
        (_prompt([1, 2, 3]), _prompt([1, 4, 3]), 1),
        (_prompt([1, 2]), _prompt([4, 2]), 0),
        (_prompt([1, 9, 9, 2], [A]), _prompt([1, 9, 9, 2], [A]), 4),
        (_prompt([1, 9, 9, 2], [A]), _prompt([1, 9, 9, 2], [B]), 1),
        (_prompt([1, 9, 9, 2], [A]), _prompt([1, 9, 9, 9], [("a", 3)]), 1),
        (_prompt([9, 9, 9, 9, 2], [A, B]), _prompt([9, 9, 9, 9, 2], [A, A]), 2),
        (_prompt([9, 9, 9, 9, 2], [A, B]), _prompt([9, 9, 2], [A]), 2),
        (_prompt([9, 9, 2], [A]), _prompt([9, 9, 9, 9, 2], [A, B]), 2),
    ],
)
def test_tokens_and_images_are_compared(prompt, earlier, num_common):
    """GHSA-rm76-4mrf-v9r8: a hash of tokens can be made to collide."""
    assert _num_common(prompt, earlier) == num_common


def test_other_positions_are_other_tokens():
    positions = np.arange(4)[None].repeat(3, axis=0)
    positions[2, 2:] += 1  # one axis of M-RoPE
    assert _num_common(_prompt([1, 2, 3, 4]), _prompt([1, 2, 3, 4], position_ids=positions)) == 2


def test_embeddings_in_another_order_are_other_tokens():
    index = np.array([-1, 1, 0, -1])
    other = _prompt([1, 9, 9, 2], [A], image_index=index)
    assert _num_common(_prompt([1, 9, 9, 2], [A]), other) == 1


@pytest.mark.parametrize(("turn", "num_common"), [([5, 6, 7], 4), ([5, 8, 7], 3), ([], 2)])
def test_answer_is_part_of_what_a_row_holds(turn, num_common):
    assert _num_common(_prompt([1, 2, *turn]), _prompt([1, 2]), (5, 6)) == num_common


def test_answer_at_other_positions_is_another():
    """M-RoPE goes on at the highest position of the prompt."""
    next_turn = _prompt([1, 9, 9, 5], [A])
    assert _num_common(next_turn, _prompt([1, 9, 9], [A]), (5,)) == 4
    wide = np.array([[0, 1, 1, 4]]).repeat(3, axis=0)
    wide[2, :3] = [0, 1, 2]
    earlier = _prompt([1, 9, 9], [A], position_ids=wide[:, :3])
    assert _num_common(replace(next_turn, position_ids=wide), earlier, (5,)) == 3
    wide[:, 3] = 3
    assert _num_common(replace(next_turn, position_ids=wide), earlier, (5,)) == 4


@pytest.mark.parametrize(
    ("salts", "num_common"),
    [((None, None), 2), (("x", "x"), 2), (("x", "y"), 0), (("x", None), 0), ((None, "x"), 0)],
)
def test_prompts_with_different_salts_have_nothing_in_common(salts, num_common):
    assert _num_common(_prompt([1, 2]), _prompt([1, 2]), salts=salts) == num_common


def test_under_cross_attention_all_images_must_be_the_same():
    """Tokens before the first image attend to everything in the row."""

    def prompt(tokens, images, seen):
        cross_range = np.array(seen).repeat(2).reshape(-1, 2)
        return _prompt(tokens, images, cross_range=cross_range)

    one = prompt([1, 9, 2], [("a", 1)], [0, 4, 4])
    assert _num_common(one, prompt([1, 9, 3], [("a", 1)], [0, 4, 4])) == 2
    assert _num_common(one, prompt([1, 9, 2], [("a", 1)], [0, 4, 5])) == 2
    assert _num_common(one, prompt([1, 9, 2], [("b", 1)], [0, 4, 4])) == 0
    assert _num_common(one, prompt([1, 2, 3], [], [0, 0, 0])) == 0
    assert _num_common(one, prompt([1, 9, 2, 9], [("a", 1), ("b", 1)], [0, 4, 4, 8])) == 0
    next_turn = prompt([1, 9, 2, 5, 6], [("a", 1)], [0, 4, 4, 4, 3])
    assert _num_common(next_turn, one, (5, 6)) == 4
