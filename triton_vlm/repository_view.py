"""A folder that shows Triton only the models of one built checkpoint, without copying them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from triton_vlm.launch_error import LaunchError

_STEP = re.compile(r'^\s*model_name: "([^"]+)"', re.MULTILINE)


def stage_models(repository: Path, name: str) -> tuple[str, ...]:
    """The Triton models that serve checkpoint `name`: the ensemble and the stages that it names.

    The ensemble alone if it is not there: `missing_models` tells.
    """
    config = repository / name / "config.pbtxt"
    return (name, *_STEP.findall(config.read_text(encoding="utf-8") if config.is_file() else ""))


def built_models(repository: Path) -> list[str]:
    """Names that can be served from `repository`: those that clients may ask for, with all stages there."""
    from python_backend.tensor_names import PARAM_SERVED_NAME

    served = [
        path.parent.name
        for path in repository.glob("*/config.pbtxt")
        if f'"{PARAM_SERVED_NAME}"' in path.read_text(encoding="utf-8")
    ]
    return sorted(
        name for name in served if not missing_models(repository, stage_models(repository, name))
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
