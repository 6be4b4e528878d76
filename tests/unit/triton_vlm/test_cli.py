from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from openai_frontend.api_keys import ApiKeys
from openai_frontend.settings import Settings
from triton_vlm.cli import app

HEAVY = ("httpx", "numpy", "onnx", "onnxruntime", "transformers", "tritonclient", "fastapi")


def run(*arguments: str) -> tuple[int, str]:
    """Exit status and everything that was printed."""
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.output


@pytest.mark.parametrize("command", ["build", "serve", "chat", "generate", "doctor", "key"])
def test_help_lists_every_command(command: str) -> None:
    assert command in run("--help")[1]


def test_help_loads_nothing_heavy() -> None:
    code = f"import sys, triton_vlm.cli; print([m for m in {HEAVY!r} if m in sys.modules])"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    assert result.stdout.strip() == "[]"


def test_build_passes_its_options_to_the_builder(capsys: pytest.CaptureFixture[str]) -> None:
    status, output = run("build", "--help")
    assert status == 0
    assert "--max-model-len" in output
    assert run("build", "--nonsense")[0] == 2


def test_serve_refuses_a_port_in_use_in_one_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        status, output = run("serve", "m", "--port", port, "--repository", str(tmp_path))
    assert status == 1
    assert output.startswith(f"Error: cannot listen on 127.0.0.1 port {port}")
    assert output.count("\n") == 1


def test_serve_refuses_an_unknown_model_in_one_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = str(server.getsockname()[1])
    status, output = run("serve", "unknown", "--port", free, "--repository", str(tmp_path))
    assert status == 1
    assert output.startswith("Error: unknown is neither")


def test_chat_without_a_server_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    status, output = run("chat", "--url", f"http://127.0.0.1:{free}/v1", "What is this?")
    assert status == 1
    assert output.startswith("Error: no answer from http://127.0.0.1")
    assert output.count("\n") == 1


def test_generate_with_a_folder_that_is_no_model_is_one_sentence(tmp_path: Path) -> None:
    status, output = run("generate", str(tmp_path), "What is this?")
    assert status == 1
    assert output.startswith("Error: ")
    assert "Traceback" not in output


def test_serve_refuses_an_open_server_for_others_in_one_sentence(tmp_path: Path) -> None:
    status, output = run("serve", "m", "--host", "0.0.0.0", "--repository", str(tmp_path))
    assert status == 1
    assert output.startswith("Error: host is '0.0.0.0', where others can reach this server")
    assert output.count("\n") == 1


@pytest.mark.parametrize("option", ["--api-key-file", "--tls-cert"])
def test_serve_refuses_files_of_the_proxy_before_it_builds(tmp_path: Path, option: str) -> None:
    missing = str(tmp_path / "missing")
    options = [option, missing, *(["--tls-key", missing] if option == "--tls-cert" else [])]
    status, output = run("serve", "m", "--repository", str(tmp_path), *options)
    assert status == 1
    assert missing in output
    assert output.count("\n") == 1


def test_serve_refuses_a_collector_that_is_no_url_before_it_builds(tmp_path: Path) -> None:
    options = ["--repository", str(tmp_path), "--otlp-endpoint", "localhost:4317"]
    status, output = run("serve", "m", *options)
    assert status == 1
    assert output.startswith("Error: otlp_endpoint must be a URL such as http://localhost:4318")
    assert output.count("\n") == 1


def test_key_prints_the_line_of_the_file_and_shows_the_key_beside_it(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["key", "alice", "--requests-per-minute", "60"])
    path = tmp_path / "keys"
    path.write_text(result.stdout)
    secret = result.stderr.split()[-1]
    assert secret not in result.stdout
    found = ApiKeys(Settings(api_key_file=str(path))).find(secret.encode())
    assert found is not None
    assert (found.name, found.requests_per_minute) == ("alice", 60)
    assert run("key", "two words")[0] == 1
