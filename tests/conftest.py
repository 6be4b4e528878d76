"""Tiny checkpoints and the models built from them, made once per session."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from tests.tiny.shapes import QWEN2_5_VL, SHAPES, TIED, WITH_TOOLS, Shape

if TYPE_CHECKING:
    from python_backend.manifest import ModelFolder

MAX_MODEL_LEN = 512

# The same examples in every run; `pytest --hypothesis-profile=default` looks for new ones.
settings.register_profile("same-examples", derandomize=True)
settings.load_profile("same-examples")


class SilentReport:
    """Keeps a build's notes and shows nothing."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def stage(self, title: str) -> None: ...

    def progress(self, what: str, done: int, total: int) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)


@dataclass(frozen=True)
class TinyModel:
    """A checkpoint, and on demand the model built from it and its Hugging Face reference.

    Attributes:
        shape: of the checkpoint.
        checkpoint: its folder.
        repository: where it is built to.
        max_model_len: context of the built model.
    """

    shape: Shape
    checkpoint: Path
    repository: Path
    max_model_len: int = MAX_MODEL_LEN

    @cached_property
    def model(self) -> ModelFolder:
        """Built and verified."""
        from builders.options import BuildOptions
        from builders.pipeline import build

        options = BuildOptions(
            model=str(self.checkpoint),
            output=self.repository,
            max_model_len=self.max_model_len,
        )
        return build(options, SilentReport())[0]

    @cached_property
    def hf(self) -> Any:
        """The checkpoint in Hugging Face, eager fp32; nothing but a length ends its answers."""
        import torch
        from transformers import GenerationConfig

        model = self.shape.auto_class.from_pretrained(
            self.checkpoint, dtype=torch.float32, attn_implementation="eager"
        )
        model.generation_config = GenerationConfig()
        return model.eval()


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TinyModel]:
    """From a shape's name to its model; each is made when first asked for."""

    @cache
    def tiny_model(name: str) -> TinyModel:
        from tests.tiny.checkpoint import make_checkpoint

        folder = tmp_path_factory.mktemp(name)
        shape = (SHAPES | WITH_TOOLS)[name]
        checkpoint = make_checkpoint(folder / name, shape)
        # A description of tools takes some hundred of the tiny tokenizer's tokens.
        max_model_len = 2 * MAX_MODEL_LEN if name in WITH_TOOLS else MAX_MODEL_LEN
        return TinyModel(shape, checkpoint, folder / "repository", max_model_len)

    return tiny_model


@pytest.fixture(scope="session", params=SHAPES)
def tiny(request: pytest.FixtureRequest, tiny_models: Callable[[str], TinyModel]) -> TinyModel:
    """Every shape in turn."""
    return tiny_models(request.param)


@pytest.fixture(scope="session", params=[shape.name for shape in QWEN2_5_VL])
def tiny_qwen2_5_vl(
    request: pytest.FixtureRequest, tiny_models: Callable[[str], TinyModel]
) -> TinyModel:
    """Every shape of the family that came first, for what is no family's business."""
    return tiny_models(request.param)


@pytest.fixture(scope="session")
def tied(tiny_models: Callable[[str], TinyModel]) -> TinyModel:
    """One model, for tests that need any."""
    return tiny_models(TIED.name)


@pytest.fixture(scope="session", autouse=True)
def _temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Lock files of the many models that are built here go away with them."""
    folder = tmp_path_factory.mktemp("tmp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.setattr("tempfile.tempdir", None)
        yield


@pytest.fixture
def nvidia_smi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Put a program of that name with the given shell script first in PATH."""
    program = tmp_path / "bin" / "nvidia-smi"

    def install(script: str) -> None:
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)

    return install


@pytest.fixture
def nvidia_gpus(nvidia_smi: Callable[[str], None]) -> Callable[..., None]:
    """Let nvidia-smi tell of GPUs with the given compute capabilities, such as "8.9"."""

    def install(*capabilities: str) -> None:
        rows = (f"echo 'NVIDIA GPU, {c}, 24576, 24000, 590.44.01'" for c in capabilities)
        nvidia_smi("\n".join(rows))

    return install


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch, nvidia_gpus: Callable[..., None]) -> Any:
    """The fake in place of TensorRT-RTX, CuPy's beside it, and a GPU of the driver's words."""
    from fake_cupy import fake_cupy
    from fake_tensorrt import FakeTensorRt

    module = FakeTensorRt()
    cupy, cupyx = fake_cupy()
    for name, fake in (("tensorrt_rtx", module), ("cupy", cupy), ("cupyx", cupyx)):
        monkeypatch.setitem(sys.modules, name, fake)
    nvidia_gpus("8.9", "12.0")
    return module


@pytest.fixture
def for_gpu(
    tiny_models: Callable[[str], TinyModel], tmp_path: Path, trt: Any
) -> Callable[[str], ModelFolder]:
    """From the name of a tiny model to the same as if it had been built for a GPU."""
    from fake_tensorrt import as_built_for_gpu

    return lambda name: as_built_for_gpu(tiny_models(name).model, tmp_path / "repository")


@pytest.fixture
def report() -> SilentReport:
    return SilentReport()
