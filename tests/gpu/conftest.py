"""Tests of this folder need an NVIDIA GPU: they are skipped without one, and told apart by device."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from builders.options import BuildOptions
from builders.pipeline import build
from python_backend.gpu import GpuQueryError, current_gpu, find_gpus
from python_backend.manifest import ModelFolder
from python_backend.runtimes.tensorrt import load_tensorrt
from tests.conftest import SilentReport
from tests.gpu.report import GpuReport
from triton_vlm.doctor.gpu import find_tensorrt

FOLDER = Path(__file__).parent
CHECKPOINT = FOLDER.parents[1] / "default_model" / "shapes-vl"
MAX_SEQS = 64
TIMEOUT_S = 600
"""Engines are built in some of them, which takes minutes."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--gpu-report",
        type=Path,
        metavar="PATH",
        help="write device, driver, TensorRT version and the result of every test to a JSON file",
    )


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--gpu-report")
    if path is not None:
        config.pluginmanager.register(GpuReport(path), "gpu-report")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if item.path.is_relative_to(FOLDER)]
    reason = why_not()
    for item in ours:
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUT_S))


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ModelFolder]:
    """From a precision to the default model with engines of it for this machine's GPU."""
    modules = [library.module for library in find_tensorrt()]
    if not modules:
        pytest.skip("TensorRT is not installed: pip install 'triton-vlm[tensorrt]'")
    pytest.importorskip("cupy")
    is_rtx = "tensorrt" not in modules
    gpu = current_gpu()
    if is_rtx and not hasattr(load_tensorrt("tensorrt_rtx").ComputeCapability, gpu.upper()):
        pytest.skip(f"TensorRT-RTX builds no engines for {gpu}: install TensorRT")

    @cache
    def engines(precision: str) -> ModelFolder:
        if precision == "fp8" and int(gpu.removeprefix("sm")) < 89:
            pytest.skip("this GPU has no 8-bit floats")
        options = BuildOptions(
            model=str(CHECKPOINT),
            output=tmp_path_factory.mktemp(precision),
            engine="tensorrt_rtx" if is_rtx else "tensorrt",
            precision=precision,
            gpus=(gpu,) if is_rtx else (),
        )
        return build(options, SilentReport())[0]

    return engines


@pytest.fixture(scope="session")
def stand_in_model(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """The default model as if it had been built for this GPU, for a stand-in of TensorRT."""
    pytest.importorskip("cupy")
    from fake_tensorrt import as_built_for_gpu

    output = tmp_path_factory.mktemp("graphs")
    options = BuildOptions(model=str(CHECKPOINT), output=output, max_seqs=MAX_SEQS)
    built = build(options, SilentReport())[0]
    repository = tmp_path_factory.mktemp("stand_in") / "model_repository"
    return as_built_for_gpu(built, repository, current_gpu(), MAX_SEQS)


@pytest.fixture
def stand_in(
    stand_in_model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], ModelFolder]:
    """From a class of `toy_kernels` to the model whose engines compute so, in this process."""

    def stand_in(kernels: str) -> ModelFolder:
        import toy_kernels
        from fake_tensorrt import FakeTensorRt

        trt = FakeTensorRt(getattr(toy_kernels, kernels)())
        monkeypatch.setitem(sys.modules, "tensorrt_rtx", trt)
        return stand_in_model

    return stand_in


@pytest.fixture(params=["tensorrt", "stand-in"])
def model(request: pytest.FixtureRequest) -> ModelFolder:
    """The default model on this GPU, with TensorRT and with what takes its place."""
    if request.param == "tensorrt":
        return request.getfixturevalue("engines")("bf16")
    return request.getfixturevalue("stand_in")("ToyKernels")


def why_not() -> str:
    """Why these tests cannot run here, empty when they can."""
    try:
        return "" if find_gpus() else "no NVIDIA GPU: nvidia-smi finds none"
    except GpuQueryError as error:
        return f"no NVIDIA GPU: nvidia-smi fails: {error}"
