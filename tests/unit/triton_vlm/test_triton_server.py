from __future__ import annotations

from pathlib import Path

import pytest

from triton_vlm.launch_error import LaunchError
from triton_vlm.ports import free_ports
from triton_vlm.triton_installation import TritonInstallation
from triton_vlm.triton_server import TritonPorts, TritonServer, command_line

# What a server prints whose decoder cannot be loaded.
FAILING_SERVER = r"""#!/bin/sh
echo "I1123 03:12:26.2 5964 server.cc:674]"
echo "E1123 03:12:26.2 59 model_lifecycle.cc:642] \"failed to load 'm-decoder' version 1: "\
'Internal: BundleError: no verify record\n\nAt:\n  /model.py(4): initialize\n"'
exit 1
"""


def test_triton_listens_on_the_loopback_address_only() -> None:
    """CVE-2026-7301, CVE-2026-24229: inner sockets that everyone could reach; CVE-2025-23310, CVE-2025-23311:
    Triton's HTTP; CVE-2025-23316: its model control; CVE-2026-24206, CVE-2026-24207, CVE-2026-47481: its
    authentication."""
    installation = TritonInstallation(
        executable=Path("/opt/bin/tritonserver"), backend_directory=Path("/run/backends")
    )
    argv = command_line(installation, Path("/run/models"), TritonPorts(grpc=1, metrics=2), "shm")
    assert argv[0] == "/opt/bin/tritonserver"
    flags = dict(argument.removeprefix("--").partition("=")[::2] for argument in argv[1:])
    assert {name: value for name, value in flags.items() if name.endswith("address")} == {
        "grpc-address": "127.0.0.1",
        "metrics-address": "127.0.0.1",
    }
    assert flags["allow-http"] == "false"
    assert (flags["grpc-port"], flags["metrics-port"]) == ("1", "2")
    assert flags["model-repository"] == "/run/models"
    assert flags["model-control-mode"] == "none"
    assert flags["backend-directory"] == "/run/backends"
    assert flags["exit-on-error"] == "true"
    assert "disable-auto-complete-config" in flags


def test_triton_traces_only_what_the_proxy_traces() -> None:
    installation = TritonInstallation(executable=Path("tritonserver"))
    given = (installation, Path("models"), TritonPorts(grpc=1, metrics=2), "shm")
    assert not any("trace" in argument for argument in command_line(*given))
    added = set(command_line(*given, "http://collector:4318/")) - set(command_line(*given))
    assert added == {
        "--trace-config=mode=opentelemetry",
        "--trace-config=level=TIMESTAMPS",
        "--trace-config=rate=0",
        "--trace-config=opentelemetry,url=http://collector:4318/v1/traces",
        "--trace-config=opentelemetry,bsp_schedule_delay=500",
    }


def test_the_default_backend_directory_of_a_container_is_left_alone() -> None:
    installation = TritonInstallation(executable=Path("tritonserver"))
    argv = command_line(installation, Path("models"), TritonPorts(grpc=1, metrics=2), "shm")
    assert not any(argument.startswith("--backend-directory") for argument in argv)


def test_ports_that_are_not_given_are_free_and_different() -> None:
    (given,) = free_ports(1)
    ports = TritonPorts.choose(grpc=given)
    assert ports.grpc == given
    assert ports.metrics != given


def test_why_a_model_could_not_be_loaded_is_taken_from_the_log(tmp_path: Path) -> None:
    server = tmp_path / "tritonserver"
    server.write_text(FAILING_SERVER, encoding="utf-8")
    server.chmod(0o755)
    models = ("m", "m-decoder")
    for model in models:
        (tmp_path / "repository" / model).mkdir(parents=True)
        (tmp_path / "repository" / model / "config.pbtxt").touch()
    triton = TritonServer(tmp_path / "repository", models, executable=server)
    triton.start()
    try:
        with pytest.raises(
            LaunchError, match=r"^Triton could not load m-decoder: BundleError: no verify record$"
        ) as caught:
            triton.wait_ready(timeout_s=5)
    finally:
        triton.stop()
    assert caught.value.log_tail.startswith("E1123")


def test_a_server_that_cannot_start_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    triton = TritonServer(tmp_path / "missing", ["m"], executable=tmp_path / "no-server")
    with pytest.raises(LaunchError, match="no-server"):
        triton.start()
    assert list(tmp_path.iterdir()) == []
