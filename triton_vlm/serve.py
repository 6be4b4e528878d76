"""`triton-vlm serve`: build what is missing, start everything, say so, and stop it cleanly."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from triton_vlm.launch_error import LaunchCancelledError, LaunchError
from triton_vlm.model_source import build_model, find_model, read_manifest
from triton_vlm.ports import require_free
from triton_vlm.proxy import read_settings
from triton_vlm.ready_block import ready_block
from triton_vlm.stack import ServingStack
from triton_vlm.status_line import StatusLine
from triton_vlm.stop_signal import StopSignal
from triton_vlm.triton_server import TritonPorts


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeOptions:
    """What a person can choose.

    Attributes:
        model: name of a built model, checkpoint folder, Hugging Face id; None: the default model.
        repository: folder of built models.
        host: address the proxy listens on.
        port: port the proxy listens on.
        triton_grpc_port: Triton's port on the loopback address, None for a free one.
        triton_metrics_port: port of Triton's metrics on the loopback address, None for a free one.
        tritonserver: the server to use, None to look for one.
        log_dir: folder for the logs, None for one in the person's cache.
        proxy_arguments: more flags of `python -m openai_frontend`.
    """

    model: str | None
    repository: Path
    host: str
    port: int
    triton_grpc_port: int | None = None
    triton_metrics_port: int | None = None
    tritonserver: Path | None = None
    log_dir: Path | None = None
    proxy_arguments: Sequence[str] = ()


def serve(options: ServeOptions) -> int:
    """Serve until a signal or a failure; the exit status for the shell."""
    out, err = Console(), Console(stderr=True)
    with StopSignal() as stop:
        try:
            _serve(options, out, err, stop.is_set)
        except LaunchCancelledError:
            pass
        except LaunchError as error:
            _show(error, err)
            return 1
        if stop.received is not None:
            # After a hang-up there is no terminal left to tell.
            with contextlib.suppress(OSError):
                err.print(f"Stopped everything after {stop.received.name}.", highlight=False)
    return 0


def _serve(
    options: ServeOptions, out: Console, err: Console, should_stop: Callable[[], bool]
) -> None:
    started_s = time.monotonic()
    # Before a build that may take minutes.
    read_settings(["--host", options.host, *options.proxy_arguments])
    require_free(options.host, options.port)
    ports = TritonPorts.choose(options.triton_grpc_port, options.triton_metrics_port)
    source = find_model(options.model, options.repository)
    build_model(source, options.repository, should_stop)
    log_dir = options.log_dir or _default_log_dir(options.port)
    stack = ServingStack(
        options.repository,
        source.name,
        host=options.host,
        port=options.port,
        triton_ports=ports,
        triton_executable=options.tritonserver,
        log_dir=log_dir,
        proxy_arguments=options.proxy_arguments,
    )
    manifest = read_manifest(options.repository, source.name)
    try:
        with StatusLine(err, started_s) as status:
            stack.start(on_status=status.show, should_stop=should_stop)
        block = ready_block(
            base_url=stack.base_url,
            model_id=manifest.served_model_name,
            sees_images=manifest.sees_images,
            needs_key=stack.proxy.settings.needs_key,
            triton_metrics_url=stack.triton.metrics_url,
            log_dir=log_dir,
            elapsed_s=time.monotonic() - started_s,
        )
        out.print(block, soft_wrap=True, markup=False, highlight=False)
        stack.wait(should_stop)
    finally:
        stack.stop()


def _default_log_dir(port: int) -> Path:
    """One folder per port: it never grows, and two servers do not share it."""
    return Path.home() / ".cache" / "triton-vlm" / f"serve-{port}"


def _show(error: LaunchError, err: Console) -> None:
    if error.log_tail:
        err.print(error.log_tail, soft_wrap=True, markup=False, highlight=False)
    where = f" (log: {error.log_path})" if error.log_path else ""
    err.print(f"Error: {error}{where}", soft_wrap=True, markup=False, highlight=False)
