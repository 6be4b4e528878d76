from __future__ import annotations

from pathlib import Path

import pytest

from triton_vlm.launch_error import LaunchError
from triton_vlm.repository_view import built_models, make_view, stage_models


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with models `one` and `two`, and `half` that lacks its decoder."""
    repository = tmp_path / "repository"
    for name in (*stage_models("one"), *stage_models("two"), *stage_models("half")[:3]):
        (repository / name).mkdir(parents=True)
        (repository / name / "config.pbtxt").touch()
    return repository


def test_a_view_shows_the_four_triton_models_of_one_built_model(
    repository: Path, tmp_path: Path
) -> None:
    make_view(repository, stage_models("one"), tmp_path / "view")
    shown = sorted(path.name for path in (tmp_path / "view").iterdir())
    assert shown == ["one", "one-decoder", "one-encoder", "one-preprocess"]
    assert all((tmp_path / "view" / name / "config.pbtxt").exists() for name in shown)


def test_a_missing_stage_is_named(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=r"does not hold half-decoder: build the model first"):
        make_view(repository, stage_models("half"), tmp_path / "view")


def test_only_complete_models_count_as_built(repository: Path) -> None:
    assert built_models(repository) == ["one", "two"]
    assert built_models(repository / "missing") == []
