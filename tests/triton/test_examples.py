"""The files in `examples/` run as they are written."""

import subprocess
import sys
from pathlib import Path

from tests.triton.conftest import EXAMPLES, MODEL
from triton_vlm.stack import ServingStack

SCRIPTS = Path(__file__).parents[2] / "examples"


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, str(SCRIPTS / script), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=100).stdout


def test_offline_example_describes_a_picture(repository: Path) -> None:
    output = run("offline.py", str(repository / MODEL), str(EXAMPLES / "number.png"))
    assert "The image shows" in output


def test_chat_client_example_streams_an_answer(stack: ServingStack) -> None:
    output = run("chat_client.py", stack.base_url, str(EXAMPLES / "two-shapes.png"))
    assert "The image shows" in output
