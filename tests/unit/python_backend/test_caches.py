"""The KV cache's rows, the encoder cache's budget, and the vision encoder that fills it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from fake_runtime import decoder_spec
from hypothesis import given, settings
from hypothesis import strategies as st

from python_backend.encoder_cache import EncoderCache
from python_backend.kv_cache import KVCache
from python_backend.runtimes.base import EngineRuntime
from python_backend.spec import GraphSpec, TensorSpec
from python_backend.vision_encoder import EncoderImage, VisionEncoder

# --- KV cache --------------------------------------------------------------------------------------


@pytest.fixture
def kv_cache():
    return KVCache(decoder_spec(max_model_len=6), 4)


def test_views_share_the_memory_and_the_same_rows_are_the_same_view(kv_cache):
    all_rows, second = kv_cache.view(0, 4), kv_cache.view(1, 2)
    assert set(all_rows.tensors) == {"past_key.0", "past_value.0"}
    second.tensors["past_key.0"][:] = 7
    assert all_rows.tensors["past_key.0"][:, 0, 0, 0].tolist() == [0, 7, 0, 0]
    assert kv_cache.view(1, 2) is second
    assert all(a.flags.c_contiguous for a in second.tensors.values())


def test_copied_row_gets_the_first_positions_only(kv_cache):
    keys = kv_cache.view(0, 4).tensors["past_key.0"]
    keys[:, 0, :, 0] = [[1] * 6, [2] * 6, [3] * 6, [4] * 6]
    kv_cache.copy_row(2, 0, 4)
    assert keys[0, 0, :, 0].tolist() == [3, 3, 3, 3, 1, 1]
    assert keys[2, 0, :, 0].tolist() == [3] * 6


def test_exchanged_rows_get_the_first_positions_of_each_other(kv_cache):
    keys = kv_cache.view(0, 4).tensors["past_key.0"]
    keys[:, 0, :, 0] = [[1] * 6, [2] * 6, [3] * 6, [4] * 6]
    kv_cache.copy_row(2, 0, 4, num_back=2)
    assert keys[0, 0, :, 0].tolist() == [3, 3, 3, 3, 1, 1]
    assert keys[2, 0, :, 0].tolist() == [1, 1, 3, 3, 3, 3]


def test_num_bytes_counts_every_array(kv_cache):
    assert kv_cache.num_bytes == 2 * 4 * 6 * 4


def _cross_cache():
    """Four rows of three tokens, and of images of up to five positions."""
    shape = ("X", 1, 5, 1)
    spec = decoder_spec(max_model_len=3)
    images = TensorSpec("cross_key.0", "float32", shape)
    spec = dataclasses.replace(spec, inputs=(*spec.inputs, images), cross_inputs=("cross_key.0",))
    return KVCache(spec, 4)


def test_rows_of_images_are_bound_up_to_the_last_that_has_any():
    cache = _cross_cache()
    assert [len(cache.view(0, n).tensors["cross_key.0"]) for n in (1, 4)] == [0, 0]
    cache.set_cross_length(1, 5)
    assert [len(cache.view(0, n).tensors["cross_key.0"]) for n in (1, 2, 4)] == [0, 2, 2]
    assert cache.cross_lengths(0, 4).tolist() == [0, 5]
    assert [len(cache.view(n, n + 1).tensors["cross_key.0"]) for n in (0, 1)] == [0, 1]
    assert len(cache.view(0, 4).tensors["past_key.0"]) == 4
    assert cache.view(0, 4) is cache.view(0, 4)
    cache.set_cross_length(1, 0)
    assert len(cache.view(0, 4).tensors["cross_key.0"]) == 0


def test_copied_row_takes_its_images_along():
    cache = _cross_cache()
    for row in range(4):
        cache.set_cross_length(row, row + 1)
    images = cache.view(0, 4).tensors["cross_key.0"]
    images[:, 0, :, 0] = [[1] * 5, [2] * 5, [3] * 5, [4] * 5]
    cache.copy_row(2, 0, 0)
    assert images[0, 0, :, 0].tolist() == [3, 3, 3, 1, 1]
    assert cache.cross_lengths(0, 4).tolist() == [3, 2, 3, 4]


def test_exchanged_rows_take_their_images_along():
    cache = _cross_cache()
    cache.set_cross_length(0, 1)
    cache.set_cross_length(2, 3)
    images = cache.view(0, 3).tensors["cross_key.0"]
    images[:, 0, :, 0] = [[1] * 5, [2] * 5, [3] * 5]
    cache.copy_row(2, 0, 1, num_back=2)
    assert images[0, 0, :, 0].tolist() == [3, 3, 3, 1, 1]
    assert images[2, 0, :, 0].tolist() == [1, 3, 3, 3, 3]
    assert cache.cross_lengths(0, 4).tolist() == [3, 0, 1]


# --- encoder cache ---------------------------------------------------------------------------------


def _embeds(num_rows, value=0.0):
    return np.full((num_rows, 4), value, np.float32)  # 16 bytes a row


def test_least_recently_used_embeddings_go_first():
    cache = EncoderCache(max_bytes=3 * 16)
    for name in "abc":
        cache.put(name, _embeds(1))
    cache.get("a")
    cache.put("d", _embeds(1))
    assert [name for name in "abcd" if cache.get(name) is not None] == ["a", "c", "d"]


def test_one_large_entry_displaces_several_small_ones():
    cache = EncoderCache(max_bytes=4 * 16)
    for name in "abcd":
        cache.put(name, _embeds(1))
    cache.put("large", _embeds(3))
    assert [n for n in "abcd" if cache.get(n) is not None] == ["d"]
    assert cache.num_bytes == 4 * 16


def test_embeddings_larger_than_the_budget_displace_nothing():
    cache = EncoderCache(max_bytes=2 * 16)
    cache.put("a", _embeds(1))
    cache.put("huge", _embeds(3))
    assert cache.get("a") is not None
    assert cache.get("huge") is None


def test_kept_embeddings_are_frozen():
    cache = EncoderCache(max_bytes=100)
    cache.put("a", _embeds(1))
    with pytest.raises(ValueError, match="read-only"):
        cache.get("a")[:] = 1


def test_budget_of_zero_keeps_nothing():
    cache = EncoderCache(max_bytes=0)
    cache.put("a", _embeds(1))
    assert cache.get("a") is None
    assert cache.num_bytes == 0


@settings(max_examples=100, deadline=None)
@given(
    max_bytes=st.integers(0, 200),
    operations=st.lists(st.tuples(st.booleans(), st.integers(0, 6), st.integers(0, 8))),
)
def test_budget_holds_and_what_is_found_is_what_was_put(max_bytes, operations):
    """CVE-2026-114052: a cache that every request made larger."""
    cache, kept = EncoderCache(max_bytes), {}
    num_gets = 0
    for is_put, name, size in operations:
        if is_put:
            embeds = kept.setdefault(name, _embeds(size, name))
            cache.put(str(name), embeds)
        else:
            found = cache.get(str(name))
            num_gets += 1
            assert found is None or found is kept[name]
        assert cache.num_bytes <= max_bytes
    assert cache.num_hits + cache.num_misses == num_gets


# --- vision encoder --------------------------------------------------------------------------------


class FakeTower(EngineRuntime):
    """Embeddings are the pixels; notes how many patches each call gets."""

    def __init__(self):
        pixels = TensorSpec("pixels", "float32", ("N", 2))
        super().__init__(
            GraphSpec("vision_encoder", (pixels,), (TensorSpec("e", "float32", ("N", 2)),), {})
        )
        self.calls = []

    def _run(self, feeds, cache):
        self.calls.append(len(feeds["pixels"]))
        return {"e": feeds["pixels"] * 2}

    def close(self): ...


class FakeFamily:
    """One embedding per patch."""

    def num_patches(self, features):
        return len(features["pixels"])

    def split_frames(self, features):
        frames = np.split(features["pixels"], features.get("num_frames", 1))
        return [{"pixels": frame} for frame in frames]

    def join_embeds(self, embeds, images):
        return np.concatenate(embeds)

    def encoder_feeds(self, images):
        return {"pixels": np.concatenate([image["pixels"] for image in images])}

    def split_embeds(self, embeds, images):
        return np.split(embeds, np.cumsum([len(image["pixels"]) for image in images])[:-1])


def _image(name, num_patches=2):
    pixels = np.full((num_patches, 2), ord(name), np.float32)
    return EncoderImage({"pixels": pixels}, name)


@pytest.fixture
def tower():
    return FakeTower()


def _encoder(tower, max_bytes=10**6, max_patches=8):
    return VisionEncoder(FakeFamily(), tower, EncoderCache(max_bytes), max_patches)


def test_each_picture_gets_its_own_embeddings_in_order(tower):
    encoder = _encoder(tower)
    for images in ([], [_image("a")], [_image("c", 3), _image("a"), _image("b", 1)]):
        embeds = encoder.encode(images)
        assert [len(e) for e in embeds] == [len(image.features["pixels"]) for image in images]
        assert [e[0, 0] for e in embeds] == [2 * ord(image.image_hash) for image in images]


def test_picture_twice_in_a_call_and_again_later_is_encoded_once(tower):
    encoder = _encoder(tower)
    first, second = encoder.encode([_image("a"), _image("a")])
    assert first is second
    encoder.encode([_image("b"), _image("a")])
    assert tower.calls == [2, 2]


def test_without_a_cache_the_same_picture_is_still_encoded_once_per_call(tower):
    encoder = _encoder(tower, max_bytes=0)
    assert len(encoder.encode([_image("a"), _image("b"), _image("a")])) == 3
    encoder.encode([_image("a")])
    assert tower.calls == [4, 2]


def test_pictures_share_calls_up_to_max_patches_and_a_larger_one_goes_alone(tower):
    encoder = _encoder(tower, max_patches=8)
    sizes = {"a": 3, "b": 5, "c": 1, "d": 20, "e": 4, "f": 5}
    encoder.encode([_image(name, size) for name, size in sizes.items()])
    assert tower.calls == [8, 1, 20, 4, 5]


def test_frames_of_a_video_are_encoded_apart_and_kept_together(tower):
    encoder = _encoder(tower, max_patches=4)
    video = EncoderImage(
        {"pixels": np.arange(12, dtype=np.float32).reshape(6, 2), "num_frames": 3}, "v"
    )
    embeds, picture = encoder.encode([video, _image("a")])
    np.testing.assert_array_equal(embeds, 2 * video.features["pixels"])
    assert tower.calls == [4, 4]  # two frames; the third with the picture
    assert len(picture) == 2
    assert encoder.encode([video])[0] is embeds


def test_embeddings_do_not_keep_the_output_of_the_whole_call_alive(tower):
    embeds = _encoder(tower).encode([_image("a"), _image("b")])
    assert all(e.base is None for e in embeds)


def test_joined_embeddings_of_no_picture_are_an_empty_matrix(tower):
    encoder = _encoder(tower)
    assert encoder.join([], []).shape == (0, 2)
    assert encoder.join([], []).dtype == np.float32
    images = [_image("a", 3), _image("b", 1)]
    assert encoder.join(images, encoder.encode(images)).shape == (4, 2)
