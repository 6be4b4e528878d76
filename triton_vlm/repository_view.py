"""A folder that shows Triton only the models of one built checkpoint, without copying them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from triton_vlm.launch_error import LaunchError


def stage_models(name: str) -> tuple[str, ...]:
    """The Triton models that serve checkpoint `name`: the ensemble and its three stages."""
    from python_backend.tensor_names import DECODER_SUFFIX, ENCODER_SUFFIX, PREPROCESS_SUFFIX

    suffixes = ("", PREPROCESS_SUFFIX, ENCODER_SUFFIX, DECODER_SUFFIX)
    return tuple(name + suffix for suffix in suffixes)


def built_models(repository: Path) -> list[str]:
    """Names that can be served from `repository`: all four Triton models are there."""
    return sorted(
        path.parent.name
        for path in repository.glob("*/config.pbtxt")
        if not missing_models(repository, stage_models(path.parent.name))
    )


def missing_models(repository: Path, models: Sequence[str]) -> list[str]:
    """Those of `models` that `repository` does not hold."""
    return [model for model in models if not (repository / model / "config.pbtxt").is_file()]


def make_view(repository: Path, models: Sequence[str], view: Path) -> None:
    """Make folder `view` with a link to each of `models` in `repository`.

    Raises:
        LaunchError: a model is not there.
    """
    missing = missing_models(repository, models)
    if missing:
        raise LaunchError(
            f"{repository} does not hold {', '.join(missing)}: build the model first "
            "(triton-vlm build --model ...)"
        )
    view.mkdir(parents=True)
    for model in models:
        (view / model).symlink_to((repository / model).resolve())
