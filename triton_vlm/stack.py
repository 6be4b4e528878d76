"""Triton and the OpenAI proxy together: what the command line, tests and benchmarks start."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from triton_vlm.ports import LOOPBACK, free_ports, require_free
from triton_vlm.proxy import OpenAIProxy
from triton_vlm.readiness import POLL_INTERVAL_S, never
from triton_vlm.repository_view import stage_models
from triton_vlm.triton_server import LoadProgress, TritonPorts, TritonServer


def _ignore_status(status: str) -> None:
    """The default observer."""


class ServingStack:
    """One built model behind the OpenAI API, in two programs that live and end together.

    Example:
        with ServingStack(Path("model_repository"), "shapes-vl") as stack:
            client = openai.OpenAI(base_url=stack.base_url, api_key="unused")
    """

    def __init__(
        self,
        repository: Path,
        name: str,
        *,
        host: str = LOOPBACK,
        port: int | None = None,
        triton_ports: TritonPorts | None = None,
        triton_executable: Path | None = None,
        log_dir: Path | None = None,
        proxy_arguments: Sequence[str] = (),
    ) -> None:
        """Describe the stack; `start` or entering it runs it.

        Args:
            repository: folder of Triton models.
            name: the built model to serve.
            host: address the proxy listens on.
            port: port the proxy listens on, None for a free one.
            triton_ports: where Triton listens, None for free ports.
            triton_executable: the tritonserver to use, None to look for one.
            log_dir: gets `triton.log` and `proxy.log`; None leaves the proxy's log on this
                program's output and removes Triton's at the end.
            proxy_arguments: more flags of `python -m openai_frontend`.

        Raises:
            LaunchError: something listens on the port.
        """
        if port is None:
            (port,) = free_ports(1)
        require_free(host, port)
        triton_ports = triton_ports or TritonPorts.choose()
        self.proxy = OpenAIProxy(
            f"{LOOPBACK}:{triton_ports.grpc}",
            host=host,
            port=port,
            log_path=log_dir and log_dir / "proxy.log",
            arguments=proxy_arguments,
        )
        self.triton = TritonServer(
            repository,
            stage_models(repository, name),
            ports=triton_ports,
            executable=triton_executable,
            log_path=log_dir and log_dir / "triton.log",
            otlp_endpoint=self.proxy.settings.otlp_endpoint,
        )
        self._name = name

    @property
    def base_url(self) -> str:
        """What OpenAI clients call the base URL."""
        return f"{self.proxy.url}/v1"

    def start(
        self,
        *,
        on_status: Callable[[str], None] = _ignore_status,
        should_stop: Callable[[], bool] = never,
    ) -> None:
        """Start both programs and wait until the model answers; stop both if that fails.

        Args:
            on_status: called several times a second with what is being waited for.
            should_stop: asked several times a second; True ends the wait.

        Raises:
            LaunchError: a program cannot start, ended, or was not ready in time.
            LaunchCancelledError: `should_stop` said so.
        """

        def show(progress: LoadProgress) -> None:
            on_status(
                f"Loading {self._name} into Triton: {len(progress.loaded)} of"
                f" {len(progress.models)} stages are up"
            )

        try:
            self.triton.start()
            # It looks for Triton when it is asked something: both can start at the same time.
            self.proxy.start()
            self.triton.wait_ready(on_progress=show, should_stop=should_stop)
            on_status("Waiting for the OpenAI proxy")
            self.proxy.wait_ready(should_stop=should_stop)
        except BaseException:
            self.stop()
            raise

    def check(self) -> None:
        """Check that both programs run.

        Raises:
            LaunchError: one has ended; with the end of its log.
        """
        self.triton.process.check()
        self.proxy.process.check()

    def wait(self, should_stop: Callable[[], bool]) -> None:
        """Return when `should_stop` says so.

        Raises:
            LaunchError: a program has ended by itself.
        """
        while not should_stop():
            self.check()
            time.sleep(POLL_INTERVAL_S)

    def stop(self) -> None:
        """End the proxy, then Triton; twice is allowed."""
        try:
            self.proxy.stop()
        finally:
            self.triton.stop()

    def __enter__(self) -> ServingStack:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
