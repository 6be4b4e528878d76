"""What a person may name as a model, and making sure that it is built."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from triton_vlm.child_process import ChildProcess
from triton_vlm.launch_error import LaunchCancelledError, LaunchError
from triton_vlm.repository_view import built_models

if TYPE_CHECKING:
    from python_backend.manifest import Manifest

DEFAULT_CHECKPOINT = Path(__file__).parent.parent / "default_model" / "shapes-vl"
BUILD_STOP_TIMEOUT_S = 5.0

_HF_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model to serve.

    Attributes:
        name: what it is called in the repository.
        checkpoint: folder or Hugging Face id to build it from first, None when it is built.
    """

    name: str
    checkpoint: str | None


def find_model(model: str | None, repository: Path) -> ModelSource:
    """Understand what a person named.

    Args:
        model: name of a built model, checkpoint folder, Hugging Face id, or None for the default.
        repository: folder of built models.

    Raises:
        LaunchError: it is none of these.
    """
    if model is None:
        if not DEFAULT_CHECKPOINT.is_dir():
            raise LaunchError(
                "the default model comes with the source tree only: name a model to serve, "
                "as in triton-vlm serve MODEL"
            )
        model = str(DEFAULT_CHECKPOINT)
    folder = Path(model).expanduser()
    # A folder may have changed since it was built; the builder reuses what did not.
    if (folder / "config.json").is_file():
        return ModelSource(name=repository_name(folder.resolve().name), checkpoint=str(folder))
    name = repository_name(Path(model).name)
    is_built = name in built_models(repository)
    if is_built and (name == model or _HF_ID.fullmatch(model)):
        return ModelSource(name=name, checkpoint=None)
    if folder.exists():
        raise LaunchError(f"{model} is not a checkpoint: it has no config.json")
    if _HF_ID.fullmatch(model):
        return ModelSource(name=name, checkpoint=model)
    raise LaunchError(
        f"{model} is neither a checkpoint folder, nor a Hugging Face id, nor built in {repository}"
        f" (built there: {', '.join(built_models(repository)) or 'none'})"
    )


def repository_name(text: str) -> str:
    """`text` with what a Triton model's name may not hold replaced."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", text)


def build_model(source: ModelSource, repository: Path, should_stop: Callable[[], bool]) -> None:
    """Build `source` into `repository`; quick when nothing has changed.

    In a program of its own: the graph libraries would stay in this one's memory while serving.

    Raises:
        LaunchError: the build failed; the builder has said why.
        LaunchCancelledError: `should_stop` said so.
    """
    if source.checkpoint is None:
        return
    builder = ChildProcess(
        "the builder",
        [
            *(sys.executable, "-m", "builders.build"),
            *("--model", source.checkpoint),
            *("--output", repository),
            *("--name", source.name),
        ],
        # On an interrupt it removes what it had begun.
        stop_signal=signal.SIGINT,
    )
    builder.start()
    try:
        status = builder.wait(should_stop)
    finally:
        builder.stop(BUILD_STOP_TIMEOUT_S)
    if status is None:
        raise LaunchCancelledError
    if status != 0:
        raise LaunchError(
            f"{source.checkpoint} could not be built: see the builder's message above"
        )


def read_manifest(repository: Path, name: str) -> Manifest:
    """What is known of a built model.

    Raises:
        LaunchError: it was not built, or only in part.
    """
    from python_backend.errors import BundleError
    from python_backend.manifest import ModelFolder

    try:
        # The stages refuse an unverified model unless its configuration allows it.
        return ModelFolder.open(repository / name, allow_unverified=True).manifest
    except BundleError as error:
        raise LaunchError(str(error)) from error
