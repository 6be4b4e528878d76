"""The default model, built and served by the real Triton and the proxy, for the tests of this folder."""

import base64
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import openai
import pytest

from builders.options import BuildOptions
from builders.pipeline import build
from tests.conftest import SilentReport
from tests.node.install import MISSING
from triton_vlm.stack import ServingStack

CHECKPOINT = Path(__file__).parents[2] / "default_model" / "shapes-vl"
MODEL = CHECKPOINT.name
EXAMPLES = CHECKPOINT / "examples"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    if any(MISSING in str(report.longrepr) for report in skipped):
        terminalreporter.section(f"{MISSING}: make node-client gets it")


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with the default model, as the builder writes it."""
    folder = tmp_path_factory.mktemp("model_repository")
    build(BuildOptions(model=str(CHECKPOINT), output=folder), SilentReport())
    return folder


@pytest.fixture(scope="session")
def stack(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingStack]:
    """The real Triton and the proxy; private addresses are allowed so that `pictures` can be fetched."""
    log_dir = tmp_path_factory.mktemp("logs")
    proxy = ["--allow-private-media"]
    with ServingStack(repository, MODEL, proxy_arguments=proxy, log_dir=log_dir) as serving:
        yield serving


@pytest.fixture(scope="session")
def client(stack: ServingStack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=stack.base_url, api_key="None", max_retries=0) as openai_client:
        yield openai_client


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture(scope="session")
def pictures() -> Iterator[str]:
    """URL of a web server on loopback that has the example pictures."""
    handler = partial(QuietHandler, directory=str(EXAMPLES))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def example_files() -> list[Path]:
    return sorted(EXAMPLES.glob("*.png"))


def image_part(data: bytes) -> dict:
    """An image_url part with a data: URI."""
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def to_openai(conversation: list[dict]) -> list[dict]:
    """A conversation of the tests as a client sends it."""

    def part_of(part: dict) -> dict:
        return image_part(part["image"]) if part["type"] == "image" else part

    return [
        message
        if isinstance(message["content"], str)
        else {**message, "content": [part_of(part) for part in message["content"]]}
        for message in conversation
    ]
