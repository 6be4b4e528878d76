"""A build runs the engine that is for this machine's GPU, and keeps nothing that is wrong.

The engine is one that ONNX Runtime computes behind TensorRT's interface, in fp16.
"""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from builders import engines
from builders.options import BuildOptions
from builders.pipeline import build
from builders.verify import COMPUTE_TOLERANCE
from python_backend.errors import ParityError


@pytest.fixture
def build_engines(tied, trt, nvidia_gpus, tmp_path, monkeypatch, report):
    """Builds for sm89 and sm120 on a machine with a GPU; `damage` changes the weights of the engines."""

    def fake_engine(path, spec, profiles, *, gpu, say):
        folder = tmp_path / f"{spec.name}-{gpu}"
        folder.mkdir()
        for file in path.parent.glob(f"{path.name}*"):
            shutil.copy(file, folder)
        if run.damage and spec.name == "decoder":
            weights = np.memmap(folder / f"{path.name}.data", np.float16, mode="r+")
            weights[len(weights) // 2 :] *= -1
            weights.flush()
        content = {"graph": str(folder / path.name), "spec": spec.to_json(), "profiles": profiles}
        return json.dumps(content).encode()

    def run(capability, *, damage=False):
        run.damage = damage
        nvidia_gpus(capability)
        options = BuildOptions(
            model=str(tied.checkpoint),
            output=tmp_path / "repository",
            max_model_len=512,
            engine="tensorrt_rtx",
            precision="fp16",
            gpus=("sm89", "sm120"),
        )
        return build(options, report)

    trt.__version__ = "fake"
    monkeypatch.setattr(engines, "engine_from_onnx", fake_engine)
    return run


def test_the_engine_of_this_gpu_is_compared_and_its_errors_are_told(build_engines, report):
    model, results = build_engines("8.9")
    on_cpu, on_gpu = results[:3], results[3:]
    assert [r.name for r in on_gpu] == [f"{r.name}, engine for sm89" for r in on_cpu]
    # fp16 rounds, fp32 does not.
    assert max(r.logits_error for r in on_cpu) < 1e-5
    assert 1e-5 < max(r.logits_error for r in on_gpu) < min(COMPUTE_TOLERANCE.values())
    found = model.manifest.verification["engines"]
    assert found["sm89"]["logits_error"] == max(r.logits_error for r in on_gpu)
    assert found["sm89"]["num_tokens"] == sum(r.num_tokens for r in on_gpu)
    assert found["sm120"] == "not run"
    assert "not run" not in "\n".join(report.notes)


def test_an_engine_that_is_wrong_is_not_kept(build_engines, tmp_path):
    with pytest.raises(ParityError, match="text, engine for sm89: logits are off"):
        build_engines("8.9", damage=True)
    assert list((tmp_path / "repository").iterdir()) == []


def test_engines_for_other_gpus_are_not_run_and_that_is_told(build_engines, report):
    model, results = build_engines("8.6", damage=True)
    assert len(results) == 3
    assert model.manifest.verification["engines"] == {"sm89": "not run", "sm120": "not run"}
    (note,) = [note for note in report.notes if "no engine was run" in note]
    assert "for sm89, sm120 and this machine has sm86" in note
