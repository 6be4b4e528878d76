from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import run
from benchmarks.floors import MachineSpeed
from benchmarks.plan import quick_plan
from benchmarks.session import Measured, Subject
from tests.unit.benchmarks.examples import ENVIRONMENT, WORK


def _session(**subject: Any) -> Any:
    measured = Measured(served=(), offline=(), peak_memory={}, gpu_bytes=None)
    speed = MachineSpeed(read_bytes_per_s=1.0, flops_per_s=1.0)
    return SimpleNamespace(
        subject=Subject(preset="tiny", **subject),
        name="model",
        checkpoint=Path("checkpoint"),
        folder=Path("folder"),
        tokenizer=Path("tokenizer.json"),
        prepare=lambda: None,
        describe=lambda command: ENVIRONMENT,
        speed=lambda: speed,
        measure=lambda loads, repeats, memory_load: measured,
        work=lambda: WORK,
    )


def test_hugging_face_is_left_out_on_a_gpu_that_torch_does_not_see(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(run, "why_no_cuda", lambda: "torch sees no CUDA device")
    monkeypatch.setattr(run, "_ask_hugging_face", lambda *_: pytest.fail("it was asked"))
    session = _session(engine="tensorrt", precision="bf16")
    results = run.measure(session, quick_plan(1), "command")
    assert results.hugging_face == ()
    assert results.no_hugging_face == "torch sees no CUDA device"


def test_hugging_face_needs_no_gpu_to_be_compared_with_a_processor(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(run, "why_no_cuda", lambda: "torch sees no CUDA device")
    monkeypatch.setattr(run, "_ask_hugging_face", lambda *_: ["burst"])
    results = run.measure(_session(), quick_plan(1), "command")
    assert (results.hugging_face, results.no_hugging_face) == (["burst"], "")
