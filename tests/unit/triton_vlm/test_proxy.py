from __future__ import annotations

import subprocess
from pathlib import Path

import httpx
import pytest

from triton_vlm.launch_error import LaunchError
from triton_vlm.ports import free_ports
from triton_vlm.proxy import OpenAIProxy
from triton_vlm.readiness import wait_until

KEY = "sk-alice-0123456789abcdef"


def test_settings_that_the_proxy_would_refuse_are_known_before_it_starts() -> None:
    with pytest.raises(LaunchError, match="no API key is needed"):
        OpenAIProxy("127.0.0.1:1", host="0.0.0.0", port=1)
    assert OpenAIProxy("t:1", host="0.0.0.0", port=1, arguments=["--allow-anonymous"]).url == (
        "http://127.0.0.1:1"
    )


@pytest.mark.timeout(300)
def test_the_proxy_of_the_command_line_asks_for_a_key_over_tls(tmp_path: Path) -> None:
    """The whole program, as `serve` starts it; no Triton is needed to be alive."""
    cert, key, keys = (tmp_path / name for name in ("cert.pem", "key.pem", "keys"))
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 "
        f"-keyout {key} -out {cert} -subj /CN=img.example"
    )
    subprocess.run(command.split(), check=True, capture_output=True)
    keys.write_text(f"{KEY} name=alice\n")
    (port,) = free_ports(1)
    arguments = [f"--tls-cert={cert}", f"--tls-key={key}", f"--api-key-file={keys}"]
    proxy = OpenAIProxy("127.0.0.1:1", host="127.0.0.1", port=port, arguments=arguments)
    assert proxy.url.startswith("https://")

    def is_live() -> bool:
        try:
            return proxy._get("/health/live").is_success
        except httpx.TransportError:
            return False

    proxy.start()
    try:
        wait_until(is_live, proxy.process, timeout_s=200)
        assert proxy._get("/v1/models").status_code == 401
        headers = {"authorization": f"Bearer {KEY}"}
        answer = httpx.get(f"{proxy.url}/nothing", headers=headers, verify=False, timeout=60)
        assert answer.json()["error"]["code"] == "unknown_url"
    finally:
        proxy.stop()


def test_the_program_says_in_one_sentence_why_it_does_not_start() -> None:
    proxy = OpenAIProxy("127.0.0.1:1", host="127.0.0.1", port=1)
    argv = [*proxy.process.argv, "--host", "0.0.0.0"]
    result = subprocess.run(argv, capture_output=True, text=True, timeout=100)
    assert result.returncode == 1
    assert result.stderr.startswith("Error: host is '0.0.0.0'")
    assert result.stderr.count("\n") == 1
