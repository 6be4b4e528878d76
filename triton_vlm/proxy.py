"""The OpenAI proxy as a child process."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triton_vlm.child_process import ChildProcess
from triton_vlm.launch_error import LaunchError
from triton_vlm.ports import LOOPBACK
from triton_vlm.readiness import never, wait_until

if TYPE_CHECKING:
    import httpx

    from openai_frontend.settings import Settings

READY_TIMEOUT_S = 60.0
DRAIN_TIMEOUT_S = 15.0
"""How long the proxy may take to end: it lets running answers finish for 10 s."""


def read_settings(arguments: Sequence[str]) -> Settings:
    """What the proxy will make of its flags and of the environment.

    Raises:
        LaunchError: it would refuse to start, because of a value, its API keys, its certificate or a
            package that is missing.
    """
    from openai_frontend.otlp import span_exporter
    from openai_frontend.settings import Settings, SettingsError
    from openai_frontend.tls import tls_options

    try:
        settings = Settings.from_command_line(arguments, os.environ)
        if settings.needs_key:
            # Imported here, with the web framework, which takes 0.3 s.
            from openai_frontend.api_keys import ApiKeys

            ApiKeys(settings)
        tls_options(settings)
        span_exporter(settings)
    except SettingsError as error:
        raise LaunchError(str(error)) from error
    return settings


class OpenAIProxy:
    """`python -m openai_frontend`, started, watched and stopped."""

    def __init__(
        self,
        triton_address: str,
        *,
        host: str,
        port: int,
        log_path: Path | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        """Describe the proxy; `start` runs it.

        Args:
            triton_address: `host:port` of Triton's gRPC endpoint.
            host: address to listen on.
            port: port to listen on.
            log_path: where its log goes, None for this program's output.
            arguments: more flags of `python -m openai_frontend`.

        Raises:
            LaunchError: the proxy would refuse to start like this.
        """
        flags = ["--triton", triton_address, "--host", host, "--port", str(port), *arguments]
        self.settings = read_settings(flags)
        scheme = "http" if self.settings.tls_cert is None else "https"
        reachable = LOOPBACK if host in ("0.0.0.0", "::", "") else host
        self.url = (
            f"{scheme}://" + (f"[{reachable}]" if ":" in reachable else reachable) + f":{port}"
        )
        self.process = ChildProcess(
            "the OpenAI proxy",
            [sys.executable, "-m", "openai_frontend", *flags],
            log_path=log_path,
        )

    def start(self) -> None:
        """Start the proxy without waiting for it."""
        self.process.start()

    def wait_ready(
        self,
        *,
        timeout_s: float = READY_TIMEOUT_S,
        should_stop: Callable[[], bool] = never,
    ) -> None:
        """Wait until the proxy says that it can serve.

        Raises:
            LaunchError: the proxy ended, or was not ready in time.
            LaunchCancelledError: `should_stop` said so.
        """
        wait_until(self._is_ready, self.process, timeout_s=timeout_s, should_stop=should_stop)

    def models(self) -> list[dict[str, Any]]:
        """The models it serves, as `/v1/models` lists them to clients that need no API key."""
        models: list[dict[str, Any]] = self._get("/v1/models").json()["data"]
        return models

    def stop(self) -> None:
        """Let running answers finish and end the proxy; twice is allowed."""
        self.process.stop(DRAIN_TIMEOUT_S)

    def _is_ready(self) -> bool:
        import httpx

        try:
            return self._get("/health/ready").is_success
        except httpx.TransportError:
            return False

    def _get(self, path: str) -> httpx.Response:
        import httpx

        # No proxy from the environment for an address on this machine. A certificate is for the name that
        # clients use; nothing secret is sent here.
        with httpx.Client(base_url=self.url, trust_env=False, verify=False, timeout=5.0) as client:
            return client.get(path)
