"""The command as a person runs it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from triton_vlm.cli import app
from triton_vlm.doctor.check import Check, Status
from triton_vlm.doctor.model import Model, host_footprint, read_model
from triton_vlm.doctor.report import Report, as_text, model_check
from triton_vlm.launch_error import LaunchError

ROOT = Path(__file__).parents[4]
CHECKPOINT = ROOT / "default_model" / "shapes-vl"
GIB = 2**30


@pytest.fixture(scope="module")
def shapes() -> Model:
    return read_model(str(CHECKPOINT), ROOT)


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["doctor", *arguments])
    return result.exit_code, result.output


def test_every_line_has_a_status_and_every_problem_a_next_step() -> None:
    _, output = run()
    lines = output.partition("\n\n")[0].splitlines()
    assert {line.split()[0] for line in lines} <= {status.value for status in Status}
    assert all(": " in line for line in lines if not line.startswith("OK"))


def test_json_is_the_same_report(tmp_path: Path) -> None:
    status, text = run("--tritonserver", str(tmp_path / "none"))
    json_status, output = run("--json", "--tritonserver", str(tmp_path / "none"))
    assert status == json_status == 1
    report = json.loads(output)
    assert report["can_serve"] is False
    lines = [line.split()[0] for line in text.partition("\n\n")[0].splitlines()]
    assert [check["status"] for check in report["checks"]] == lines


def test_a_gpu_and_a_model_are_put_together(nvidia_smi) -> None:
    nvidia_smi("echo 'NVIDIA L4, 8.9, 23034, 22491, 590.44.01'")
    _, output = run(str(CHECKPOINT), "--json")
    report = json.loads(output)
    assert report["gpus"][0]["name"] == "NVIDIA L4"
    host, gpu = report["model"]["devices"]
    assert (host["device"], gpu["device"]) == ("Host", "GPU 0")
    assert gpu["free_bytes"] == 22491 * 2**20
    assert gpu["cache_bytes"] * 2 == host["cache_bytes"]
    sums = ("weights_bytes", "cache_bytes", "activation_bytes", "fixed_bytes")
    assert gpu["total_bytes"] == sum(gpu[name] for name in sums)


def test_a_driver_that_fails_is_a_line_of_the_report(nvidia_smi) -> None:
    nvidia_smi("echo 'Driver/library version mismatch'; exit 18")
    assert "nvidia-smi fails: Driver/library version mismatch" in run()[1]


def test_a_model_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    status, output = run(str(tmp_path), "--repository", str(tmp_path))
    assert status == 1
    assert output.startswith("Error: ")
    assert output.count("\n") == 1


def test_a_family_nobody_has_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "unknown"}', encoding="utf-8")
    with pytest.raises(LaunchError, match="'unknown' is not supported"):
        read_model(str(tmp_path), tmp_path)


def test_the_sum_is_shown_with_its_parts(shapes: Model) -> None:
    host = host_footprint(shapes, 8 * GIB)
    text = as_text(Report(checks=[], gpus=[], tensorrt=[], model=shapes, footprints=[host]))
    assert "4 layers x 2 x 2 KV heads x 64 x 4 B = 4,096 B" in text
    assert "16 x 2,048 x 4,096 B = 128 MiB KV cache" in text
    assert "of 8.0 GiB free" in text
    assert text.endswith("shapes-vl can be served on this machine.")


def test_what_does_not_fit_is_told_what_would(shapes: Model) -> None:
    fitting = host_footprint(shapes, 8 * GIB)
    needed = fitting.total_bytes(4, shapes.limits[1])
    tight, hopeless = replace(fitting, free_bytes=needed), replace(fitting, free_bytes=GIB // 4)
    assert model_check(shapes, [fitting], [fitting]).status is Status.OK
    assert "--max-seqs 4 " in model_check(shapes, [tight], [tight]).next_step
    assert model_check(shapes, [hopeless], [hopeless]).prevents_serving


def test_a_device_that_cannot_be_served_on_does_not_count(shapes: Model) -> None:
    host = replace(host_footprint(shapes, 8 * GIB), free_bytes=GIB // 4)
    gpu = replace(host, device="GPU 0", free_bytes=8 * GIB)
    assert model_check(shapes, [host, gpu], [host]).prevents_serving
    assert model_check(shapes, [host, gpu], [host, gpu]).status is Status.OK


def test_only_what_is_needed_prevents_serving() -> None:
    missing = Check(name="GPU", status=Status.MISSING, finding="none")
    assert Report(checks=[missing], gpus=[], tensorrt=[]).can_serve
    needed = replace(missing, is_needed=True)
    assert not Report(checks=[needed], gpus=[], tensorrt=[]).can_serve
