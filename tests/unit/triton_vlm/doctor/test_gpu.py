from __future__ import annotations

import pytest

from python_backend.gpu import Gpu
from triton_vlm.doctor.check import Status
from triton_vlm.doctor.gpu import (
    Library,
    find_libraries,
    gpu_checks,
    supports,
    tensorrt_check,
)


def gpu(capability: tuple[int, int]) -> Gpu:
    return Gpu(name="G", compute_capability=capability, memory_bytes=8, free_bytes=4, driver="1")


def test_without_gpus_one_serves_on_the_cpu() -> None:
    (check,) = gpu_checks([], "")
    assert check.status is Status.MISSING
    assert not check.prevents_serving


def test_a_gpu_without_memory_of_its_own_shares_the_hosts() -> None:
    gb10 = Gpu(
        name="NVIDIA GB10",
        compute_capability=(12, 1),
        memory_bytes=None,
        free_bytes=None,
        driver="590.44.01",
    )
    (check,) = gpu_checks([gb10], "")
    assert "memory shared with the host" in check.finding


def test_turing_is_warned_about_because_it_computes_no_bfloat16() -> None:
    old, new = gpu_checks([gpu((7, 5)), gpu((8, 0))], "")
    assert (old.status, new.status) == (Status.WARN, Status.OK)
    assert "bfloat16" in old.next_step


@pytest.mark.parametrize(
    ("module", "capability", "expected"),
    [
        ("tensorrt", (9, 0), True),
        ("tensorrt", (7, 0), False),
        ("tensorrt_rtx", (8, 9), True),
        ("tensorrt_rtx_bindings", (9, 0), False),
    ],
)
def test_tensorrt_rtx_leaves_data_centre_gpus_to_tensorrt(
    module: str, capability: tuple[int, int], expected: bool
) -> None:
    assert supports(module, capability) == expected


def test_a_tensorrt_that_makes_no_engines_for_the_gpu_is_a_warning() -> None:
    rtx = Library("tensorrt_rtx", "1.7")
    check = tensorrt_check([rtx], [gpu((8, 9)), gpu((9, 0))])
    assert check.status is Status.WARN
    assert "no engines for compute capability 9.0" in check.finding
    assert tensorrt_check([rtx, Library("tensorrt", "11.4")], [gpu((9, 0))]).status is Status.OK
    assert tensorrt_check([], []).status is Status.MISSING


def test_libraries_are_found_with_the_version_of_their_package() -> None:
    (found,) = find_libraries(("numpy", "no_such_module", "no_such_package.module"))
    assert found.module == "numpy"
    assert found.version
