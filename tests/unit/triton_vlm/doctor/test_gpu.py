from __future__ import annotations

from pathlib import Path

import pytest

from triton_vlm.doctor.check import Status
from triton_vlm.doctor.gpu import (
    Gpu,
    GpuQueryError,
    Library,
    find_gpus,
    find_libraries,
    gpu_checks,
    parse_gpus,
    supports,
    tensorrt_check,
)

TWO_GPUS = """\
NVIDIA L4, 8.9, 23034, 22491, 590.44.01
"NVIDIA RTX PRO 6000, Server", 12.0, 97887, 97250, 590.44.01
"""
QUERY = (
    "--query-gpu=name,compute_cap,memory.total,memory.free,driver_version "
    "--format=csv,noheader,nounits"
)


def gpu(capability: tuple[int, int]) -> Gpu:
    return Gpu(name="G", compute_capability=capability, memory_bytes=8, free_bytes=4, driver="1")


def test_gpus_are_what_nvidia_smi_prints(nvidia_smi) -> None:
    nvidia_smi(f"test \"$*\" = '{QUERY}' || exit 2\ncat <<'END'\n{TWO_GPUS}END\n")
    first, second = find_gpus()
    assert first == Gpu(
        name="NVIDIA L4",
        compute_capability=(8, 9),
        memory_bytes=23034 * 2**20,
        free_bytes=22491 * 2**20,
        driver="590.44.01",
    )
    assert second.compute_capability == (12, 0)


def test_without_nvidia_smi_there_are_no_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_gpus() == []
    (check,) = gpu_checks([], "")
    assert check.status is Status.MISSING
    assert not check.prevents_serving


def test_a_driver_that_does_not_answer_is_told_in_its_own_words(nvidia_smi) -> None:
    nvidia_smi("echo 'NVIDIA-SMI has failed: no driver' >&2\necho more >&2\nexit 9\n")
    with pytest.raises(GpuQueryError, match=r"^NVIDIA-SMI has failed: no driver$"):
        find_gpus()


def test_something_else_than_gpus_is_refused() -> None:
    with pytest.raises(GpuQueryError, match="No devices were found"):
        parse_gpus("No devices were found\n")


def test_a_gpu_that_shares_the_hosts_memory_has_none_of_its_own() -> None:
    (found,) = parse_gpus("NVIDIA GB10, 12.1, [N/A], [N/A], 590.44.01\n")
    assert found.memory_bytes is None
    (check,) = gpu_checks([found], "")
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
