from __future__ import annotations

from pathlib import Path

import pytest

from triton_vlm.launch_error import LaunchError
from triton_vlm.model_source import ModelSource, find_model, repository_name


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository that holds `built`, an ensemble of one stage."""
    ensemble = 'model_name: "built-decoder"\nparameters { key: "served_model_name" }\n'
    for model, config in (("built", ensemble), ("built-decoder", "")):
        (tmp_path / "repository" / model).mkdir(parents=True)
        (tmp_path / "repository" / model / "config.pbtxt").write_text(config)
    return tmp_path / "repository"


def test_a_built_model_is_served_as_it_is(repository: Path) -> None:
    assert find_model("built", repository) == ModelSource("built", None)


def test_a_checkpoint_folder_is_built_again_in_case_it_changed(
    repository: Path, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "built"
    checkpoint.mkdir()
    (checkpoint / "config.json").touch()
    assert find_model(str(checkpoint), repository) == ModelSource("built", str(checkpoint))


def test_a_hugging_face_id_is_built_only_when_it_is_absent(repository: Path) -> None:
    assert find_model("org/Model-3B", repository) == ModelSource("Model-3B", "org/Model-3B")
    assert find_model("org/built", repository) == ModelSource("built", None)


def test_a_folder_that_is_no_checkpoint_is_refused(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=r"no config\.json"):
        find_model(str(tmp_path), repository)


def test_an_unknown_name_is_refused_with_the_names_that_are_built(repository: Path) -> None:
    with pytest.raises(LaunchError, match=r"built there: built\)"):
        find_model("unknown", repository)


def test_names_keep_only_what_triton_allows() -> None:
    assert repository_name("Qwen2.5-VL 3B (mine)") == "Qwen2.5-VL-3B--mine-"
