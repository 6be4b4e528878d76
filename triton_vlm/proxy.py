"""The OpenAI proxy as a child process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triton_vlm.child_process import ChildProcess
from triton_vlm.ports import LOOPBACK
from triton_vlm.readiness import never, wait_until

if TYPE_CHECKING:
    import httpx

READY_TIMEOUT_S = 60.0
DRAIN_TIMEOUT_S = 15.0
"""How long the proxy may take to end: it lets running answers finish for 10 s."""


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
        """
        reachable = LOOPBACK if host in ("0.0.0.0", "::", "") else host
        self.url = (
            f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"
        )
        self.process = ChildProcess(
            "the OpenAI proxy",
            [
                *(sys.executable, "-m", "openai_frontend"),
                *("--triton", triton_address),
                *("--host", host),
                *("--port", str(port)),
                *arguments,
            ],
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
        """The models it serves, as `/v1/models` lists them."""
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

        # No proxy from the environment for an address on this machine.
        with httpx.Client(base_url=self.url, trust_env=False, timeout=5.0) as client:
            return client.get(path)
