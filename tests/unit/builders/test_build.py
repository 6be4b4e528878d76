"""A second build does what has changed, and no more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from tokenizers import Tokenizer

from builders.options import BuildOptions
from builders.pipeline import build
from builders.quantize import Quantization
from python_backend import tensor_names as names
from python_backend.errors import BundleError
from python_backend.manifest import ModelFolder
from tests.tiny.shapes import SAVED

ROOT = Path(__file__).parents[3]


@pytest.fixture
def checkpoint(tiny_models):
    return tiny_models(SAVED.name).checkpoint


@pytest.fixture
def build_tiny(checkpoint, tmp_path, report):
    """Builds without verification; returns the model and the notes of this build."""

    def run(**changes):
        options = {"max_model_len": 64, "skip_verify": True, "output": tmp_path / "repository"}
        report.notes.clear()
        model, results = build(
            BuildOptions(model=str(checkpoint), **{**options, **changes}), report
        )
        assert results == []
        return model, list(report.notes)

    return run


def _inodes(model: ModelFolder) -> dict[str, dict[str, int]]:
    graphs = {"vision": model.manifest.vision_encoder, "decoder": model.manifest.decoder}
    return {
        name: {file: (model.folder.parent / file).stat().st_ino for file in graph.files}
        for name, graph in graphs.items()
    }


def _mtimes(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_second_build_of_the_same_writes_nothing(build_tiny):
    model, notes = build_tiny()
    assert notes == []
    before = _mtimes(model.folder.parent)
    model, notes = build_tiny()
    assert notes == ["nothing has changed since the last build"]
    assert _mtimes(model.folder.parent) == before


def test_new_max_seqs_takes_over_both_graphs(build_tiny):
    before = _inodes(build_tiny(max_seqs=2)[0])
    model, _ = build_tiny(max_seqs=3)
    assert model.manifest.max_seqs == 3
    assert _inodes(model) == before
    config = (model.folder.parent / f"{model.manifest.name}-decoder/config.pbtxt").read_text()
    assert 'key: "max_num_seqs", value { string_value: "3" }' in config


def test_new_max_model_len_takes_over_the_vision_graph_only(build_tiny):
    before = _inodes(build_tiny()[0])
    model, _ = build_tiny(max_model_len=96)
    after = _inodes(model)
    assert after["vision"] == before["vision"]
    assert all(after["decoder"][file] != before["decoder"][file] for file in before["decoder"])
    assert model.manifest.decoder.spec.input("past_key.0").shape[2] == 96


def test_changed_checkpoint_is_built_again(build_tiny, checkpoint):
    before = _inodes(build_tiny()[0])
    weights = checkpoint / "model.safetensors"
    stat = weights.stat()
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    after = _inodes(build_tiny()[0])
    for graph, files in after.items():
        assert all(before[graph][file] != inode for file, inode in files.items())


def test_lost_graph_file_is_built_again(build_tiny):
    model, _ = build_tiny()
    model.path(model.manifest.decoder).unlink()
    model, _ = build_tiny()
    assert model.path(model.manifest.decoder).exists()


def test_failed_rebuild_keeps_the_model_that_was_there(build_tiny):
    model, _ = build_tiny()
    before = _mtimes(model.folder.parent)
    with pytest.raises(BundleError):
        build_tiny(max_model_len=10**6)
    assert _mtimes(model.folder.parent) == before


def test_repository_holds_the_four_models_and_nothing_else(build_tiny):
    model, _ = build_tiny()
    name = model.manifest.name
    suffixes = ("", names.PREPROCESS_SUFFIX, names.ENCODER_SUFFIX, names.DECODER_SUFFIX)
    assert {path.name for path in model.folder.parent.iterdir()} == {name + s for s in suffixes}
    for suffix in suffixes:
        folder = model.folder.parent / (name + suffix)
        assert f'name: "{name + suffix}"' in (folder / "config.pbtxt").read_text()
        assert (folder / "1" / "model.py").exists() == bool(suffix)


def test_manifest_hashes_are_those_of_the_files(build_tiny):
    import hashlib

    model, _ = build_tiny()
    for graph in (model.manifest.vision_encoder, model.manifest.decoder):
        for file, digest in graph.files.items():
            data = (model.folder.parent / file).read_bytes()
            assert hashlib.sha256(data).hexdigest() == digest


def test_decoder_stage_gets_the_texts_of_tokens_without_the_merges(build_tiny):
    model, _ = build_tiny()
    whole = Tokenizer.from_file(str(model.processor_dir / "tokenizer.json"))
    texts = Tokenizer.from_file(str(model.detokenizer_path))
    assert json.loads(model.detokenizer_path.read_text(encoding="utf-8"))["model"]["merges"] == []
    token_ids = whole.encode("A small café, 12 stars.").ids
    assert texts.decode(token_ids) == whole.decode(token_ids) != ""
    assert texts.get_vocab() == whole.get_vocab()
    assert repr(texts.get_added_tokens_decoder()) == repr(whole.get_added_tokens_decoder())


def test_unverified_model_is_refused_unless_allowed(build_tiny):
    model, _ = build_tiny()
    with pytest.raises(BundleError, match="without verification"):
        ModelFolder.open(model.folder)
    assert ModelFolder.open(model.folder, allow_unverified=True).manifest == model.manifest


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "fp64"},
        {"max_seqs": 0},
        {"max_images": 0},
        {"max_model_len": -1},
        {"name": "../outside"},
        {"name": ""},
        {"name": 'quo"te'},
        {"engine": "onnxruntime", "precision": "bf16"},
        {"engine": "tensorrt_rtx", "precision": "fp32", "gpus": ("sm89",)},
        {"engine": "tensorrt_rtx"},
        {"engine": "tensorrt_rtx", "gpus": ("ada",)},
        {"engine": "tensorrt", "gpus": ("sm89",)},
        {"engine": "openvino"},
        {"precision": "int4", "group_size": 16},
        {"precision": "int8", "group_size": 32},
    ],
)
def test_options_out_of_range_are_refused(changes):
    with pytest.raises(BundleError):
        BuildOptions(model="somewhere/model", **changes)


@pytest.mark.parametrize("engine", [{}, {"engine": "tensorrt_rtx", "gpus": ("sm89",)}])
def test_groups_of_4_bit_weights_are_as_large_as_is_said(engine):
    weight = np.random.default_rng(0).normal(size=(2, 256)).astype(np.float32)
    for given, group_size in [(None, 128), (64, 64), (32, 32)]:
        options = BuildOptions(model="m", precision="int4", group_size=given, **engine)
        quantization = Quantization.of(options.number_formats)
        assert quantization.attributes["block_size"] == group_size
        assert quantization.quantize(weight)[1].shape == (2, 256 // group_size)


def test_precision_of_an_engine_is_its_first_unless_given():
    assert BuildOptions(model="m").precision == "fp32"
    assert BuildOptions(model="m", engine="tensorrt").precision == "bf16"
    assert BuildOptions(model="m", engine="tensorrt_rtx", gpus=("sm89",)).precision == "bf16"


def test_tensorrt_on_a_machine_without_a_gpu_says_so(build_tiny, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "tensorrt", ModuleType("tensorrt"))
    monkeypatch.setattr(sys.modules["tensorrt"], "__version__", "11", raising=False)
    with pytest.raises(BundleError, match="needs an NVIDIA GPU"):
        build_tiny(engine="tensorrt")
    assert not (tmp_path / "repository").exists()


def _run_build(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "builders/build.py", *arguments],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_command_line_ends_with_status_1_and_one_sentence(tmp_path):
    result = _run_build("--model", "nonexistent", "--output", str(tmp_path / "repository"))
    assert result.returncode == 1
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if "error:" in line]
    assert "nonexistent is not a local folder" in line
    assert result.stderr.splitlines()[-1] == line
    assert not (tmp_path / "repository").exists()


def test_command_line_builds_and_verifies(checkpoint, tmp_path):
    arguments = ["--model", str(checkpoint), "--output", str(tmp_path), "--max-model-len", "512"]
    result = _run_build(*arguments)
    assert result.returncode == 0, result.stderr
    manifest = json.loads((tmp_path / SAVED.name / "1" / "manifest.json").read_text())
    assert manifest["verification"]["num_equal_tokens"] == manifest["verification"]["num_tokens"]
    assert manifest["verification"]["num_tokens"] == 24
