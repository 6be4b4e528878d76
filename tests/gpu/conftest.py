"""Tests of this folder need an NVIDIA GPU: they are skipped without one, and told apart by device."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from builders.options import BuildOptions
from builders.pipeline import build
from python_backend.gpu import GpuQueryError, current_gpu, find_gpus
from python_backend.manifest import ModelFolder
from tests.conftest import SilentReport
from tests.gpu.report import GpuReport
from triton_vlm.doctor.gpu import find_tensorrt

FOLDER = Path(__file__).parent
CHECKPOINT = FOLDER.parents[1] / "default_model" / "shapes-vl"
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

    @cache
    def engines(precision: str) -> ModelFolder:
        if precision == "fp8" and int(current_gpu().removeprefix("sm")) < 89:
            pytest.skip("this GPU has no 8-bit floats")
        options = BuildOptions(
            model=str(CHECKPOINT),
            output=tmp_path_factory.mktemp(precision),
            engine="tensorrt_rtx" if is_rtx else "tensorrt",
            precision=precision,
            gpus=(current_gpu(),) if is_rtx else (),
        )
        return build(options, SilentReport())[0]

    return engines


def why_not() -> str:
    """Why these tests cannot run here, empty when they can."""
    try:
        return "" if find_gpus() else "no NVIDIA GPU: nvidia-smi finds none"
    except GpuQueryError as error:
        return f"no NVIDIA GPU: nvidia-smi fails: {error}"
