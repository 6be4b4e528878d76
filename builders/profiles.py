"""Optimization profiles: how large the dynamic axes of a TensorRT engine may become."""

from __future__ import annotations

from collections.abc import Mapping

from python_backend.spec import GraphSpec

Profile = Mapping[str, tuple[int, int, int]]
"""Sizes (smallest, most frequent, largest) of every dynamic axis of a graph, by the axis's name."""

_USUAL_PATCHES = 1024
"""Of a picture: a quarter of a megapixel in the Qwen-VL line."""


def decoder_profiles(
    max_num_seqs: int, max_chunk: int, max_model_len: int
) -> tuple[Profile, Profile]:
    """Decode and prefill. TensorRT's fused decode kernel needs S to be exactly 1.

    Rows that cross-attention layers work on are at least one: TensorRT has no kernel for none.

    Args:
        max_num_seqs: rows of a decode step, at most.
        max_chunk: tokens of a prefill chunk, at most.
        max_model_len: tokens of a prompt, all of which may be image embeddings.
    """
    one = (1, 1, 1)
    chunk = (1, max_chunk, max_chunk)
    embeds = (1, min(max_chunk, max_model_len), max_model_len)
    rows = (1, max(1, max_num_seqs // 2), max_num_seqs)
    decode = {"B": rows, "X": rows, "S": one, "I": one, "L": one}
    return decode, {"B": one, "X": one, "S": chunk, "I": embeds, "L": one}


def cross_profile(spec: GraphSpec) -> Profile:
    """Of the graph that fills what cross-attention layers read: as many embeddings as a row holds."""
    capacity = spec.outputs[0].shape[2]
    assert isinstance(capacity, int)
    return {"I": (1, capacity, capacity)}


def patch_profiles(max_patches: int, max_shared_patches: int) -> tuple[Profile, Profile]:
    """Of a tower over patches: one picture of any size, and several small ones.

    Two, because memory is set aside for the largest of everything at once: a few hundred pictures of
    the largest size would be terabytes.

    Args:
        max_patches: of one picture.
        max_shared_patches: of all pictures that share a call.
    """
    usual, shared = min(_USUAL_PATCHES, max_patches), max_shared_patches
    # A window of a picture that is one merged patch wide holds 16 patches.
    one = {
        "N": (4, usual, max_patches),
        "G": (1, 1, 1),
        "L": (4, usual, max_patches),
        "W": (1, max(1, usual // 64), max_patches // 16 + 1),
    }
    several = {
        "N": (4, shared, shared),
        "G": (1, 4, max(4, shared // 4)),
        "L": (4, max(4, shared // 4), shared),
        "W": (1, max(1, shared // 64), max(1, shared // 4)),
    }
    return one, several


def tile_profile(max_tiles: int, max_embeds: int) -> Profile:
    """Of a tower over tiles.

    Args:
        max_tiles: of one call.
        max_embeds: image embeddings that come out of it.
    """
    return {"T": (1, 1, max_tiles), "M": (1, min(_USUAL_PATCHES, max_embeds), max_embeds)}
