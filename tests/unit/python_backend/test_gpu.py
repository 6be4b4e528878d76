from __future__ import annotations

from pathlib import Path

import pytest

from python_backend.errors import BundleError
from python_backend.gpu import Gpu, GpuQueryError, current_gpu, find_gpu, find_gpus, parse_gpus

TWO_GPUS = """\
NVIDIA L4, 8.9, 23034, 22491, 590.44.01
"NVIDIA RTX PRO 6000, Server", 12.0, 97887, 97250, 590.44.01
"""
QUERY = (
    "--query-gpu=name,compute_cap,memory.total,memory.free,driver_version "
    "--format=csv,noheader,nounits"
)


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
    assert current_gpu() == find_gpu() == "sm89"


def test_without_nvidia_smi_there_are_no_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_gpus() == []
    assert find_gpu() is None
    with pytest.raises(BundleError, match="nvidia-smi finds none"):
        current_gpu()


def test_a_driver_that_does_not_answer_is_told_in_its_own_words(nvidia_smi) -> None:
    nvidia_smi("echo 'NVIDIA-SMI has failed: no driver' >&2\necho more >&2\nexit 9\n")
    with pytest.raises(GpuQueryError, match=r"^NVIDIA-SMI has failed: no driver$"):
        find_gpus()
    with pytest.raises(BundleError, match="nvidia-smi fails: NVIDIA-SMI has failed: no driver"):
        current_gpu()


def test_something_else_than_gpus_is_refused() -> None:
    with pytest.raises(GpuQueryError, match="No devices were found"):
        parse_gpus("No devices were found\n")


def test_a_gpu_that_shares_the_hosts_memory_has_none_of_its_own() -> None:
    (found,) = parse_gpus("NVIDIA GB10, 12.1, [N/A], [N/A], 590.44.01\n")
    assert found.memory_bytes is None
    assert found.free_bytes is None
