"""What was built, how it is run, and the contracts in between."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
from fake_runtime import decoder_spec

from python_backend.config import EngineConfig
from python_backend.errors import BundleError, EngineError, InvalidRequestError
from python_backend.families import load_family
from python_backend.manifest import FORMAT_VERSION, Manifest, ModelFolder
from python_backend.spec import GraphSpec


@pytest.fixture
def folder(tied, tmp_path):
    """A copy of a built model, to damage."""
    shutil.copytree(tied.model.folder.parent, tmp_path / "repository", copy_function=_link)
    return tmp_path / "repository" / tied.model.manifest.name


def _link(source, target):
    """Only what the tests change is copied."""
    copy = shutil.copyfile if source.endswith(".json") else os.link
    copy(source, target)


def _edit(folder, **changes):
    path = folder / "1" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_manifest_survives_its_json(tiny):
    manifest = tiny.model.manifest
    assert Manifest.from_json(manifest.to_json()) == manifest


@pytest.mark.parametrize(
    "changes", [{}, {"takes_whole_images": True, "cross_inputs": ("a", "b"), "num_token_ids": 9}]
)
def test_graph_spec_survives_its_json(changes):
    spec = dataclasses.replace(decoder_spec(32), **changes)
    assert GraphSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"format_version": 6}',
        '{"format_version": 6, "vision_encoder": {}, "decoder": {}}',
        '{"format_version": 6, "vision_encoder": null, "decoder": []}',
    ],
)
def test_damaged_manifest_is_refused(folder, text):
    (folder / "1" / "manifest.json").write_text(text)
    with pytest.raises(BundleError, match="build the model again"):
        ModelFolder.open(folder)


def test_manifest_that_is_no_text_is_refused(folder):
    (folder / "1" / "manifest.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BundleError):
        ModelFolder.open(folder)


def test_manifest_with_an_unknown_or_missing_field_is_refused(folder):
    _edit(folder, surprise=1)
    with pytest.raises(BundleError, match="damaged"):
        ModelFolder.open(folder)
    data = json.loads((folder / "1" / "manifest.json").read_text())
    del data["surprise"], data["precision"]
    (folder / "1" / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(BundleError, match="damaged"):
        ModelFolder.open(folder)


def test_other_format_version_is_named(folder):
    _edit(folder, format_version=FORMAT_VERSION + 1)
    with pytest.raises(BundleError, match=f"format {FORMAT_VERSION + 1}") as caught:
        ModelFolder.open(folder)
    assert str(FORMAT_VERSION) in caught.value.message


def test_missing_graph_file_is_named(folder, tied):
    for file in tied.model.manifest.decoder.files:
        path = folder.parent / file
        path.rename(path.with_suffix(".away"))
        with pytest.raises(BundleError, match=path.name):
            ModelFolder.open(folder)
        path.with_suffix(".away").rename(path)
    ModelFolder.open(folder)


def test_folder_without_a_model_says_how_to_build_one(tmp_path):
    with pytest.raises(BundleError, match=r"builders/build\.py --model"):
        ModelFolder.open(tmp_path / "nothing")


def test_unverified_model_is_refused_unless_allowed(folder):
    _edit(folder, verification={})
    with pytest.raises(BundleError, match="--skip-verify"):
        ModelFolder.open(folder)
    assert ModelFolder.open(folder, allow_unverified=True).folder == folder


def test_sampling_defaults_fill_what_a_request_leaves_open(tied):
    manifest = dataclasses.replace(
        tied.model.manifest, sampling_defaults={"temperature": 0.5, "top_p": 0.8}
    )
    params = manifest.read_sampling({"temperature": 1.5})
    assert (params.temperature, params.top_p) == (1.5, 0.8)
    for given in ([], None, "x", 1):
        with pytest.raises(InvalidRequestError, match="JSON object"):
            manifest.read_sampling(given)


def test_unknown_family_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(BundleError, match="qwen2_5_vl"):
        load_family({"model_type": "blip_9000"}, tmp_path)


# --- EngineConfig ----------------------------------------------------------------------------------


def test_parameters_of_config_pbtxt_become_the_config():
    parameters = {"max_num_seqs": "3", "num_threads": "0", "model": "x", "other": "y"}
    config = EngineConfig.from_parameters(parameters)
    assert config == EngineConfig(max_num_seqs=3, num_threads=0)
    assert EngineConfig.from_parameters({}) == EngineConfig()


@pytest.mark.parametrize(("text", "value"), [("true", True), ("false", False)])
def test_switch_in_config_pbtxt_is_true_or_false(text, value):
    assert EngineConfig.from_parameters({"prefix_cache": text}).prefix_cache is value


@pytest.mark.parametrize(
    "parameters",
    [
        {"max_num_seqs": "0"},
        {"max_num_seqs": "many"},
        {"max_num_seqs": "1.5"},
        {"max_num_seqs": ""},
        {"max_num_batched_tokens": "-1"},
        {"max_waiting": "0"},
        {"max_encoder_patches": "0"},
        {"num_threads": "-1"},
        {"encoder_cache_bytes": "-1"},
        {"prefix_cache": "1"},
        {"prefix_cache": "True"},
    ],
)
def test_parameter_out_of_range_is_named_with_its_value(parameters):
    with pytest.raises(BundleError) as caught:
        EngineConfig.from_parameters(parameters)
    ((name, value),) = parameters.items()
    assert name in caught.value.message
    assert value in caught.value.message


# --- GraphSpec -------------------------------------------------------------------------------------


def _feeds(**changes):
    feeds = {
        "input_ids": np.zeros((2, 3), np.int64),
        "image_index": np.zeros((2, 3), np.int64),
        "image_embeds": np.zeros((1, 2), np.float32),
        "position_ids": np.zeros((2, 3), np.int64),
        "write_indices": np.zeros(2, np.int64),
        "kv_lengths": np.zeros(2, np.int32),
        "logits_index": np.zeros((2, 1), np.int64),
    }
    return {k: v for k, v in {**feeds, **changes}.items() if v is not None}


def test_feeds_that_fit_the_contract_pass():
    decoder_spec(8).check(_feeds())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kv_lengths": None}, "takes"),
        ({"surprise": np.zeros(1)}, "surprise"),
        ({"kv_lengths": np.zeros(2, np.int64)}, "kv_lengths is int64"),
        ({"input_ids": np.zeros((2, 3), np.int32)}, "input_ids is int32"),
        ({"write_indices": np.zeros((2, 1), np.int64)}, "write_indices has shape"),
        ({"image_embeds": np.zeros((1, 3), np.float32)}, "should be 2"),
        ({"kv_lengths": np.zeros(3, np.int32)}, "axis B should be 2"),
        ({"position_ids": np.zeros((2, 4), np.int64)}, "axis S should be 3"),
    ],
)
def test_feeds_that_do_not_fit_are_named_with_their_axis(changes, words):
    with pytest.raises(EngineError, match=words):
        decoder_spec(8).check(_feeds(**changes))


def test_fixed_bytes_are_those_of_one_row():
    spec = decoder_spec(8)
    assert spec.input("past_key.0").num_fixed_bytes == 8 * 4
    assert spec.output("logits").num_fixed_bytes == 257 * 4
    for find in (spec.input, spec.output):
        with pytest.raises(KeyError, match="nothing"):
            find("nothing")
