"""The TensorRT runtime on an engine without a GPU: bindings, profiles, and what it refuses.

That a real engine computes the same is for `make test-gpu`.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys

import numpy as np
import pytest

from builders.profiles import cross_profile, decoder_profiles, patch_profiles
from python_backend.config import EngineConfig
from python_backend.errors import BundleError, EngineError
from python_backend.loading import load_engine, load_runtime
from python_backend.manifest import FILE_NAME, VERSION_DIR, ModelFolder
from python_backend.sampling_params import SamplingParams
from python_backend.vlm import VLM
from tests.conftest import MAX_MODEL_LEN
from tests.fakes.fake_tensorrt import FakeTensorRt, engine_file, fake_cupy
from tests.tiny.conversations import conversations_of
from tests.tiny.shapes import TIED

VISION = {
    TIED.name: patch_profiles(4 * MAX_MODEL_LEN, 1024),
    "tiny-mllama": [{"P": (1, 1, 16)}],
}
CONFIG = EngineConfig(max_num_seqs=4, max_num_batched_tokens=64)
GREEDY = SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True)


@pytest.fixture
def trt(monkeypatch, tmp_path):
    """The fake in place of TensorRT-RTX, and a GPU of the driver's words."""
    module = FakeTensorRt()
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", module)
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy())
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text("#!/bin/sh\necho 8.9\necho 12.0\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(smi.parent), prepend=":")
    return module


@pytest.fixture
def model(for_gpu):
    """The usual tiny model as if it had been built for a GPU."""
    return for_gpu(TIED.name)


@pytest.fixture
def for_gpu(tiny_models, tmp_path, trt):
    """From the name of a tiny model to the same as if it had been built for a GPU."""
    return lambda name: _for_gpu(tiny_models(name).model, tmp_path / "repository")


def _for_gpu(built, repository):
    shutil.copytree(built.folder.parent, repository)
    folder = ModelFolder.open(repository / built.folder.name)
    graphs = {}
    for graph in folder.manifest.graphs:
        name = graph.spec.name
        if name == "decoder":
            profiles = decoder_profiles(4, 64, MAX_MODEL_LEN)
        elif name == "cross_attention":
            profiles = [cross_profile(graph.spec)]
        else:
            profiles = VISION[built.folder.name]
        path = folder.path(graph).with_suffix(".sm89.engine")
        engine_file(path, folder.path(graph), graph.spec, profiles)
        paths = {"sm89": str(path.relative_to(repository))}
        graphs[name] = dataclasses.replace(graph, paths=paths)
    manifest = dataclasses.replace(folder.manifest, engine="tensorrt_rtx", **graphs)
    (folder.folder / VERSION_DIR / FILE_NAME).write_text(manifest.to_json())
    return ModelFolder.open(folder.folder)


@pytest.mark.parametrize("name", VISION)
def test_answers_equal_those_of_onnx_runtime(tiny_models, for_gpu, trt, name):
    tiny = tiny_models(name)
    conversations = list(conversations_of(tiny.shape).values())
    answers = []
    for folder in (tiny.model.folder, for_gpu(name).folder):
        with VLM(folder, CONFIG) as vlm:
            answers.append([list(g.token_ids) for g in vlm.generate(conversations, GREEDY)])
    assert answers[0] == answers[1]
    assert trt.calls["decoder", 0] > 0  # decode steps
    assert trt.calls["decoder", 1] > 0  # chunks of prompts
    assert trt.calls["vision_encoder", 0] > 0


def test_inputs_outside_every_profile_are_refused_with_what_to_do(model):
    with load_runtime(model, model.manifest.decoder, CONFIG) as runtime:
        rows = 5  # one more than the engine was built for
        feeds = {
            "input_ids": np.zeros((rows, 1), np.int64),
            "image_index": np.full((rows, 1), -1),
            "image_embeds": np.zeros((1, runtime.spec.input("image_embeds").shape[1]), np.float32),
            "position_ids": np.zeros((3, rows, 1), np.int64),
            "write_indices": np.zeros(rows, np.int64),
            "kv_lengths": np.ones(rows, np.int32),
            "logits_index": np.zeros((rows, 1), np.int64),
        }
        with pytest.raises(EngineError, match=r"input_ids \[5, 1\].*--max-seqs"):
            runtime.run(feeds)


def test_an_engine_of_another_version_is_refused_with_tensorrts_reason(model):
    model.path(model.manifest.decoder, "sm89").write_bytes(b"an engine of yesterday")
    with pytest.raises(BundleError, match=r"Serialization assertion failed.*build the model again"):
        load_engine(model, CONFIG)


def test_an_engine_without_a_tensor_of_its_manifest_is_refused(model):
    path = model.path(model.manifest.decoder, "sm89")
    content = json.loads(path.read_text())
    content["spec"]["inputs"] = content["spec"]["inputs"][1:]
    path.write_text(json.dumps(content))
    with pytest.raises(BundleError, match="does not have the tensor input_ids"):
        load_engine(model, CONFIG)


def test_a_gpu_that_it_was_not_built_for_is_named(model, tmp_path):
    (tmp_path / "bin" / "nvidia-smi").write_text("#!/bin/sh\necho 9.0\n")
    with pytest.raises(BundleError, match=r"built for sm89 and not for sm90: .*--gpu sm90"):
        load_engine(model, CONFIG)


def test_a_machine_without_a_gpu_is_told_so(model, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BundleError, match="nvidia-smi finds none"):
        load_engine(model, CONFIG)


@pytest.mark.parametrize(
    ("module", "message"),
    [("tensorrt_rtx", "tensorrt_rtx is not installed"), ("cupy", "need CuPy")],
)
def test_a_missing_library_is_named(model, monkeypatch, module, message):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
    with pytest.raises(BundleError, match=message):
        load_engine(model, CONFIG)


def test_a_closed_engine_says_so(model):
    runtime = load_runtime(model, model.manifest.vision_encoder, CONFIG)
    runtime.close()
    runtime.close()
    with pytest.raises(EngineError, match="closed"):
        runtime._run({}, None)


def test_bfloat16_caches_are_kept_as_bits(model):
    with load_runtime(model, model.manifest.decoder, CONFIG) as runtime:
        assert runtime.zeros((2, 3), "bfloat16").dtype == np.uint16
        assert runtime.zeros((2, 3), "float16").dtype == np.float16
