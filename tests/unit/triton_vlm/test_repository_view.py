from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from triton_vlm.launch_error import LaunchError
from triton_vlm.repository_view import built_models, make_view, stage_models

STAGES = ("preprocess", "encoder", "decoder")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with models `one` and `two`, `text` without an encoder, and `half` without a decoder."""
    repository = tmp_path / "repository"
    for name in ("one", "two", "half"):
        write_ensemble(repository, name, STAGES)
    write_ensemble(repository, "text", ("preprocess", "decoder"))
    (repository / "half-decoder" / "config.pbtxt").unlink()
    return repository


def write_ensemble(repository: Path, name: str, stages: Sequence[str]) -> None:
    """The config.pbtxt files of a built model, as far as the launcher reads them."""
    steps = [f'    {{\n      model_name: "{name}-{stage}"\n    }}' for stage in stages]
    served = f'parameters {{ key: "served_model_name", value {{ string_value: "{name}" }} }}\n'
    configs = {
        name: "ensemble_scheduling {\n  step [\n" + ",\n".join(steps) + "\n  ]\n}\n" + served
    }
    configs |= {f"{name}-{stage}": 'backend: "python"\n' for stage in stages}
    for model, config in configs.items():
        (repository / model).mkdir(parents=True)
        (repository / model / "config.pbtxt").write_text(config)


def test_a_view_shows_the_four_triton_models_of_one_built_model(
    repository: Path, tmp_path: Path
) -> None:
    make_view(repository, stage_models(repository, "one"), tmp_path / "view")
    shown = sorted(path.name for path in (tmp_path / "view").iterdir())
    assert shown == ["one", "one-decoder", "one-encoder", "one-preprocess"]
    assert all((tmp_path / "view" / name / "config.pbtxt").exists() for name in shown)


def test_a_missing_stage_is_named(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=r"does not hold half-decoder: build the model first"):
        make_view(repository, stage_models(repository, "half"), tmp_path / "view")


def test_a_model_that_was_not_built_is_named(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=r"does not hold nothing: build the model first"):
        make_view(repository, stage_models(repository, "nothing"), tmp_path / "view")


def test_the_stages_are_those_that_the_ensemble_names(repository: Path) -> None:
    assert stage_models(repository, "one") == ("one", *(f"one-{stage}" for stage in STAGES))
    assert stage_models(repository, "text") == ("text", "text-preprocess", "text-decoder")


def test_only_complete_models_count_as_built(repository: Path) -> None:
    assert built_models(repository) == ["one", "text", "two"]
    assert built_models(repository / "missing") == []
