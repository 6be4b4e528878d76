"""The Qwen-VL line against Hugging Face: pixels, positions, and the towers over many pictures at once."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.vision_utils import get_vision_interpolation_indices_and_weights

from python_backend.config import EngineConfig
from python_backend.errors import InvalidImageError
from python_backend.families import load_family
from python_backend.families.base import LOW_DETAIL_PIXELS
from python_backend.families.qwen2_5_vl import plan_windows
from python_backend.families.qwen2_vl import plan_groups, plan_patches
from python_backend.families.qwen3_vl import plan_resampling
from python_backend.loading import load_vision_encoder
from python_backend.vision_encoder import EncoderImage
from tests.tiny.conversations import CONVERSATIONS
from tests.tiny.pictures import picture
from tests.tiny.reference import hf_inputs

# Wide, tall, tiny, odd, square, and one that the processor shrinks.
SIZES = [(211, 64), (45, 190), (5, 7), (33, 31), (112, 112), (1200, 700), (400, 20)]


@pytest.fixture(scope="module")
def family(tiny):
    return load_family(tiny.model.manifest.config, tiny.model.processor_dir)


@pytest.fixture(scope="module")
def processor(tiny):
    return Qwen2VLImageProcessorPil.from_pretrained(tiny.checkpoint)


@pytest.mark.parametrize("sizes", [SIZES[:1], SIZES[1:4], SIZES], ids=["one", "three", "all"])
def test_prepared_images_equal_the_huggingface_processor(family, processor, sizes):
    pictures = [picture(*size, seed=i) for i, size in enumerate(sizes)]
    expected = processor(images=pictures)
    prepared = [family.prepare_image(image, "auto") for image in pictures]
    features = family.join_images(prepared)
    np.testing.assert_array_equal(features["image_grid_thw"], expected["image_grid_thw"])
    np.testing.assert_array_equal(features["pixel_values"], expected["pixel_values"])
    grids = np.asarray(expected["image_grid_thw"])
    assert [image.num_tokens for image in prepared] == (grids.prod(axis=1) // 4).tolist()


def test_features_have_the_declared_names_and_dtypes(family):
    for images in ([], [family.prepare_image(picture(60, 60), "auto")]):
        features = family.join_images(images)
        for spec in family.encoder_tensors:
            spec.check(features[spec.name], {})
        assert features.keys() == {spec.name for spec in family.encoder_tensors}


def test_splitting_is_the_inverse_of_joining(family):
    for sizes in ([], SIZES[:1], SIZES):
        images = [family.prepare_image(picture(*size), "auto") for size in sizes]
        parts = family.split_images(family.join_images(images))
        assert len(parts) == len(images)
        for part, image in zip(parts, images, strict=True):
            for name, array in image.features.items():
                np.testing.assert_array_equal(part[name], array)


def test_low_detail_caps_the_pixels_and_never_raises_the_processors_limit(tied, tmp_path):
    config, large = tied.model.manifest.config, picture(1400, 1000)
    tight = load_family(config, tied.model.processor_dir)
    assert len({tight.prepare_image(large, d).num_tokens for d in ("low", "high", "auto")}) == 1
    folder = shutil.copytree(tied.model.processor_dir, tmp_path / "processor")
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "max_pixels": 10**7}))
    generous = load_family(config, folder)
    low, high, auto = (generous.prepare_image(large, d).num_tokens for d in ("low", "high", "auto"))
    assert low * 28**2 <= LOW_DETAIL_PIXELS < high * 28**2
    assert auto == high


@pytest.mark.parametrize("size", [(1000, 4), (4, 1000)])
def test_extreme_aspect_ratio_is_refused(family, size):
    with pytest.raises(InvalidImageError, match="more than 200 times"):
        family.prepare_image(picture(*size), "auto")
    width, height = (s * 4 // 5 for s in size)
    family.prepare_image(picture(max(width, 4), max(height, 4)), "auto")


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_positions_equal_huggingface(tiny, family, name):
    inputs = hf_inputs(tiny.checkpoint, CONVERSATIONS[name])
    grids = inputs.get("image_grid_thw")
    expected, _ = tiny.hf.model.get_rope_index(
        inputs["input_ids"],
        mm_token_type_ids=inputs["mm_token_type_ids"],
        image_grid_thw=grids,
        attention_mask=torch.ones_like(inputs["input_ids"]),
    )
    images = [] if grids is None else [{"image_grid_thw": g[None].numpy()} for g in grids]
    positions = family.positions(inputs["input_ids"][0].numpy(), images)
    np.testing.assert_array_equal(positions, expected[:, 0].numpy())


def _hf_tower(tiny, prepared):
    grids = np.concatenate([image.features["image_grid_thw"] for image in prepared])
    pixels = np.concatenate([image.features["pixel_values"] for image in prepared])
    with torch.no_grad():
        features = tiny.hf.get_image_features(
            pixel_values=torch.from_numpy(pixels), image_grid_thw=torch.from_numpy(grids)
        )
    levels = [
        torch.cat(level).split([len(e) for e in features.pooler_output])
        for level in getattr(features, "deepstack_features", ())
    ]
    parts = zip(features.pooler_output, *levels, strict=True)
    return [torch.cat(part, dim=1).numpy() for part in parts]


@pytest.mark.parametrize(
    ("sizes", "max_patches"),
    [(SIZES[:1], 4096), (SIZES[:4], 4096), (SIZES, 4096), (SIZES[::-1], 4096), (SIZES, 100)],
)
def test_embeddings_equal_the_huggingface_tower(tiny, family, sizes, max_patches):
    """Several pictures in one call, and in several calls."""
    prepared = [family.prepare_image(picture(*size, seed=3), "auto") for size in sizes]
    config = EngineConfig(max_encoder_patches=max_patches)
    encoder = load_vision_encoder(tiny.model, family, config)
    images = [EncoderImage(image.features, str(i)) for i, image in enumerate(prepared)]
    embeds = encoder.encode(images)
    for ours, theirs, image in zip(embeds, _hf_tower(tiny, prepared), prepared, strict=True):
        assert len(ours) == image.num_tokens
        assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()
    encoder.close()


# --- plans -----------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    grids=st.lists(
        st.tuples(st.integers(1, 2), st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=3
    ),
    window=st.sampled_from([2, 4, 6]),
)
def test_windows_and_frames_partition_the_patches(grids, window):
    grids = np.array([(t, 2 * h, 2 * w) for t, h, w in grids])
    positions, frames = plan_patches(grids, 2)
    windows = plan_windows(grids, positions, window)
    assert len(positions) == grids.prod(axis=1).sum()
    assert sorted(set(frames.tolist())) == list(range(grids[:, 0].sum()))
    assert sorted(set(windows.tolist())) == list(range(windows.max() + 1))
    assert np.bincount(windows).max() <= window**2
    for w in range(windows.max() + 1):
        members = positions[windows == w]
        assert len(set(frames[windows == w].tolist())) == 1
        assert len({tuple(p) for p in (members // window).tolist()}) == 1
    for frame in range(frames.max() + 1):
        members = [tuple(p) for p in positions[frames == frame].tolist()]
        assert len(set(members)) == len(members)


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_slots_and_places_are_inverse(sizes, seed):
    ids = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    slots, place = plan_groups(ids, 9)
    assert slots.shape == (len(sizes), 9)
    np.testing.assert_array_equal(slots.reshape(-1)[place], np.arange(len(ids)))
    assert (slots >= 0).sum() == len(ids)
    for group, row in enumerate(slots):
        assert (ids[row[row >= 0]] == group).all()


@settings(max_examples=60, deadline=None)
@given(
    grids=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=3),
    side=st.integers(1, 9),
)
def test_resampling_equals_huggingface(grids, side):
    grids = np.array([(1, 2 * h, 2 * w) for h, w in grids])
    positions, _ = plan_patches(grids, 2)
    sizes = np.repeat(grids[:, 1:], grids.prod(axis=1), axis=0)
    index, weight = plan_resampling(positions, sizes, side)
    expected = get_vision_interpolation_indices_and_weights(
        torch.from_numpy(grids), side, align_corners=True, spatial_merge_size=2
    )
    np.testing.assert_array_equal(index, expected[0].numpy())
    np.testing.assert_array_equal(weight, expected[1].numpy())
