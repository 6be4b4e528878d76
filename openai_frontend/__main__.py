"""Start the proxy: `python -m openai_frontend --triton localhost:8001 --port 9000`."""

from __future__ import annotations

import logging
import os
import sys

import uvicorn

from openai_frontend.app import create_app
from openai_frontend.otlp import open_tracing
from openai_frontend.settings import Settings, SettingsError
from openai_frontend.tls import tls_options
from openai_frontend.triton_backend import TritonBackend


def main() -> None:
    """Serve until SIGINT or SIGTERM; requests that run then have a short time to finish."""
    try:
        settings = Settings.from_command_line(sys.argv[1:], os.environ)
        tls = tls_options(settings)
        app = create_app(
            settings,
            TritonBackend(settings.triton, models_ttl_s=settings.models_ttl_s),
            tracing=open_tracing(settings),
        )
    except SettingsError as error:
        sys.exit(f"Error: {error}")
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    # httpx logs the URL of every request at INFO; clients' URLs may hold secrets.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http="httptools",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=settings.shutdown_timeout_s,
        **tls,
    )


if __name__ == "__main__":
    main()
