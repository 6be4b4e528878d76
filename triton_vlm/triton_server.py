"""The real tritonserver as a context manager: start, wait until every model answers, stop."""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from triton_vlm.child_process import ChildProcess
from triton_vlm.launch_error import LaunchError
from triton_vlm.ports import LOOPBACK, free_ports, is_listening, require_free
from triton_vlm.readiness import never, wait_until
from triton_vlm.repository_view import make_view
from triton_vlm.triton_installation import TritonInstallation, find_installation

READY_TIMEOUT_S = 900.0
"""Large checkpoints on slow disks take minutes to load."""
DRAIN_TIMEOUT_S = 10
"""How long tritonserver lets running requests finish after SIGTERM."""
UNLOAD_TIMEOUT_S = 10
"""How long unloading the models may take on top of that."""

SPAN_DELAY_MS = 500
"""How long tritonserver collects spans before it sends them (5 s by its default). What it has when it ends
is lost at times: Triton 2.51 on two busy cores, in 2 of 17 runs."""

_LOADED = re.compile(r"successfully loaded '([^']+)'")
_FAILED = re.compile(r"failed to load '([^']+)' version \d+: (?:Internal: )?(.*)")
_TRACEBACK = r"\n\nAt:"
"""Triton writes the line ends of a Python model's error as two characters."""
_NOISE = r"I\d{4} |[|+]"
"""Information and tables; warnings, errors and what models write remain."""


@dataclass(frozen=True, slots=True)
class TritonPorts:
    """Loopback ports of one tritonserver."""

    grpc: int
    metrics: int

    @classmethod
    def choose(cls, grpc: int | None = None, metrics: int | None = None) -> TritonPorts:
        """The given ports, and free ones for those not given.

        Raises:
            LaunchError: something listens on a given port.
        """
        for port in (grpc, metrics):
            if port is not None:
                require_free(LOOPBACK, port)
        free_grpc, free_metrics = free_ports(2)
        return cls(grpc=grpc or free_grpc, metrics=metrics or free_metrics)


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """How far a starting tritonserver is.

    Attributes:
        models: what it was started to serve.
        loaded: those of them that are loaded.
    """

    models: tuple[str, ...]
    loaded: tuple[str, ...]


def _ignore_progress(progress: LoadProgress) -> None:
    """The default observer."""


def command_line(
    installation: TritonInstallation,
    view: Path,
    ports: TritonPorts,
    shm_prefix: str,
    otlp_endpoint: str | None = None,
) -> list[str]:
    """The arguments tritonserver is started with.

    Everything listens on the loopback address: the proxy is the only way in. HTTP is off because
    the proxy speaks gRPC; metrics have a port of their own.
    """
    argv = [
        str(installation.executable),
        f"--model-repository={view}",
        "--model-control-mode=none",
        "--disable-auto-complete-config",
        "--exit-on-error=true",
        f"--exit-timeout-secs={DRAIN_TIMEOUT_S}",
        "--allow-http=false",
        f"--grpc-address={LOOPBACK}",
        f"--grpc-port={ports.grpc}",
        "--allow-metrics=true",
        f"--metrics-address={LOOPBACK}",
        f"--metrics-port={ports.metrics}",
        f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
    ]
    if otlp_endpoint is not None:
        url = otlp_endpoint.rstrip("/") + "/v1/traces"
        # Rate 0: only requests that come with a `traceparent`, which the proxy gives to those it traces.
        tracing = (
            "mode=opentelemetry",
            "level=TIMESTAMPS",
            "rate=0",
            f"opentelemetry,url={url}",
            f"opentelemetry,bsp_schedule_delay={SPAN_DELAY_MS}",
        )
        argv += [f"--trace-config={setting}" for setting in tracing]
    if installation.backend_directory is not None:
        argv.append(f"--backend-directory={installation.backend_directory}")
    return argv


class TritonServer:
    """One tritonserver on the loopback address, serving some models of a repository.

    Example:
        with TritonServer(Path("model_repository"), ["shapes-vl", ...]) as triton:
            client = tritonclient.grpc.InferenceServerClient(triton.grpc_address)
    """

    def __init__(
        self,
        repository: Path,
        models: Sequence[str],
        *,
        ports: TritonPorts | None = None,
        executable: Path | None = None,
        log_path: Path | None = None,
        otlp_endpoint: str | None = None,
    ) -> None:
        """Describe the server; `start` or entering it runs it.

        Args:
            repository: folder of Triton models.
            models: those to serve; the others stay unloaded.
            ports: where to listen, None for free ports.
            executable: the tritonserver to use, None to look for one.
            log_path: where its log goes, None for a temporary file that `stop` removes.
            otlp_endpoint: collector of its spans of requests that are traced, None for none.
        """
        self.models = tuple(models)
        self.ports = ports or TritonPorts.choose()
        self._repository = repository
        self._executable = executable
        self._log_path = log_path
        self._otlp_endpoint = otlp_endpoint
        self._run_dir: Path | None = None
        self._process: ChildProcess | None = None

    @property
    def grpc_address(self) -> str:
        """`host:port` for a gRPC client."""
        return f"{LOOPBACK}:{self.ports.grpc}"

    @property
    def metrics_url(self) -> str:
        """Where Prometheus text is served."""
        return f"http://{LOOPBACK}:{self.ports.metrics}/metrics"

    @property
    def process(self) -> ChildProcess:
        """The running program."""
        if self._process is None:
            raise RuntimeError("Triton was not started")
        return self._process

    def start(self) -> None:
        """Start the server without waiting for it.

        Raises:
            LaunchError: there is no tritonserver, or a model is not in the repository.
        """
        self._run_dir = Path(tempfile.mkdtemp(prefix="triton-vlm-"))
        try:
            installation = find_installation(self._executable, self._run_dir)
            view = self._run_dir / "models"
            make_view(self._repository, self.models, view)
            self._process = ChildProcess(
                "Triton",
                command_line(
                    installation, view, self.ports, self._run_dir.name, self._otlp_endpoint
                ),
                env=installation.environment(),
                log_path=self._log_path or self._run_dir / "triton.log",
                log_noise=_NOISE,
            )
            self._process.start()
        except BaseException:
            self.stop()
            raise

    def wait_ready(
        self,
        *,
        timeout_s: float = READY_TIMEOUT_S,
        on_progress: Callable[[LoadProgress], None] = _ignore_progress,
        should_stop: Callable[[], bool] = never,
    ) -> None:
        """Wait until every model answers.

        Args:
            timeout_s: give up after this time.
            on_progress: called several times a second.
            should_stop: asked several times a second; True ends the wait.

        Raises:
            LaunchError: the server ended, or was not ready in time.
            LaunchCancelledError: `should_stop` said so.
        """
        try:
            wait_until(
                self._is_ready,
                self.process,
                timeout_s=timeout_s,
                should_stop=should_stop,
                on_wait=lambda: on_progress(self._progress()),
            )
        except LaunchError as error:
            failed = _FAILED.search(self.process.log_text())
            if failed is None:
                raise
            reason = failed[2].partition(_TRACEBACK)[0]
            raise self.process.error(f"Triton could not load {failed[1]}: {reason}") from error

    def stop(self) -> None:
        """End the server and its stubs and remove what it left; twice is allowed."""
        if self._process is not None:
            self._process.stop(DRAIN_TIMEOUT_S + UNLOAD_TIMEOUT_S)
        if self._run_dir is not None:
            # A stub that was killed cannot remove its shared memory itself.
            for region in Path("/dev/shm").glob(f"{self._run_dir.name}*"):
                with contextlib.suppress(FileNotFoundError):
                    region.unlink()
            shutil.rmtree(self._run_dir, ignore_errors=True)

    def __enter__(self) -> TritonServer:
        self.start()
        try:
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _progress(self) -> LoadProgress:
        seen = set(_LOADED.findall(self.process.log_text()))
        return LoadProgress(
            models=self.models,
            loaded=tuple(model for model in self.models if model in seen),
        )

    def _is_ready(self) -> bool:
        """Whether it listens: it does so once all models are loaded, and ends if one cannot be.

        Asking it about each model would import a client for half a second while they load.
        """
        return is_listening(self.ports.grpc)
