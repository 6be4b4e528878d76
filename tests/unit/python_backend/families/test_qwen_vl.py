"""What only the Qwen-VL line does: positions, plans of its towers, limits of its pictures."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.vision_utils import get_vision_interpolation_indices_and_weights

from python_backend.families import load_family
from python_backend.families.base import LOW_DETAIL_PIXELS
from python_backend.families.qwen2_5_vl import plan_windows
from python_backend.families.qwen2_vl import plan_groups, plan_patches
from python_backend.families.qwen3_vl import plan_resampling
from tests.tiny.conversations import CONVERSATIONS
from tests.tiny.pictures import picture
from tests.tiny.qwen import QWEN2_5_VL, QWEN2_VL, QWEN3_VL
from tests.tiny.reference import hf_inputs

NAMES = [shape.name for shape in (*QWEN2_5_VL, *QWEN2_VL, *QWEN3_VL)]


@pytest.fixture(scope="module", params=NAMES)
def tiny(request, tiny_models):
    return tiny_models(request.param)


@pytest.fixture(scope="module")
def family(tiny):
    return load_family(tiny.model.manifest.config, tiny.model.processor_dir)


def test_low_detail_caps_the_pixels_and_never_raises_the_processors_limit(tied, tmp_path):
    config, large = tied.model.manifest.config, picture(1400, 1000)
    tight = load_family(config, tied.model.processor_dir)
    assert len({tight.prepare_image(large, d, 1).num_tokens for d in ("low", "high", "auto")}) == 1
    folder = shutil.copytree(tied.model.processor_dir, tmp_path / "processor")
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "max_pixels": 10**7}))
    generous = load_family(config, folder)
    low, high, auto = (
        generous.prepare_image(large, d, 1).num_tokens for d in ("low", "high", "auto")
    )
    assert low * 28**2 <= LOW_DETAIL_PIXELS < high * 28**2
    # As docs/openai-api.md counts them.
    assert (low, high, auto) == (15 * 21, 36 * 50, 36 * 50)


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
