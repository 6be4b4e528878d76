from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from benchmarks import growth, run, session
from benchmarks.session import Session, Subject
from builders.command import _parser


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the builder is asked for, in its own words; it fails every time."""
    asked: list[Any] = []

    def run_builder(command: list[str], cwd: Path) -> Any:
        asked.append(_parser().parse_args(command[3:]))
        return SimpleNamespace(returncode=1)

    monkeypatch.setattr(session.subprocess, "run", run_builder)
    return asked


def _session(folder: Path, **subject: Any) -> Session:
    return Session(Subject(preset=None, **subject), folder, Console(quiet=True))


def test_a_model_is_built_as_asked_and_a_build_that_fails_ends_the_run(builds, tmp_path: Path):
    with pytest.raises(SystemExit, match="shapes-vl cannot be built"):
        _session(tmp_path, precision="int4", max_seqs=64, max_model_len=1280).prepare()
    (build,) = builds
    assert (build.engine, build.precision, build.gpus) == ("onnxruntime", "int4", ())
    assert (build.max_seqs, build.max_model_len) == (64, 1280)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(("engine", "gpus"), [("tensorrt", ()), ("tensorrt_rtx", ("sm89",))])
def test_engines_are_built_for_the_gpu_of_this_machine(monkeypatch, tmp_path: Path, engine, gpus):
    # The fixture `builds` would also answer for nvidia-smi.
    made = _session(tmp_path, engine=engine, precision="bf16")
    asked: list[list[str]] = []
    monkeypatch.setattr(
        session.subprocess,
        "run",
        lambda command, cwd: asked.append(command[3:]) or SimpleNamespace(returncode=0),
    )
    made.prepare()
    build = _parser().parse_args(asked[0])
    assert (build.engine, build.precision, build.gpus) == (engine, "bf16", gpus)
    assert made.gpu.name == "NVIDIA L4"


def test_ways_of_building_have_repositories_of_their_own():
    subjects = (
        Subject(preset=None),
        Subject(preset=None, precision="int4"),
        Subject(preset=None, max_model_len=1280),
        Subject(preset=None, engine="tensorrt", precision="int4"),
    )
    assert len({subject.folder_name for subject in subjects}) == len(subjects)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("main", [run.main, growth.main])
def test_a_gpu_that_is_not_there_is_said_in_one_sentence(main, tmp_path: Path):
    with pytest.raises(SystemExit, match="nvidia-smi finds none") as error:
        main(["--quick", "--engine", "tensorrt", "--work-dir", str(tmp_path)])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("main", [run.main, growth.main])
def test_a_precision_of_another_engine_is_said_in_one_sentence(main, tmp_path: Path):
    with pytest.raises(SystemExit, match="'bf16' is not one of those of onnxruntime"):
        main(["--quick", "--precision", "bf16", "--work-dir", str(tmp_path)])
