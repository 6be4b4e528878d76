"""The launcher with the real Triton and models of a few lines: no checkpoint, no graph."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput

from tests.triton.conftest import MODEL
from triton_vlm.chat import ChatClient
from triton_vlm.launch_error import LaunchError
from triton_vlm.ports import free_ports
from triton_vlm.sample_picture import sample_picture
from triton_vlm.stack import ServingStack
from triton_vlm.triton_server import TritonServer

DOUBLE = """
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        inputs = [pb_utils.get_input_tensor_by_name(r, "x").as_numpy() for r in requests]
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("y", x * 2)]) for x in inputs
        ]
"""
DOUBLE_CONFIG = """
backend: "python"
input [ { name: "x" data_type: TYPE_INT64 dims: [ -1 ] } ]
output [ { name: "y" data_type: TYPE_INT64 dims: [ -1 ] } ]
"""
# Speaks the ensemble's tensors, so that the proxy can serve it.
ANSWER = """
import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            prompt = json.loads(pb_utils.get_input_tensor_by_name(request, "prompt").as_numpy()[0])
            images = pb_utils.get_input_tensor_by_name(request, "images").as_numpy()
            sender = request.get_response_sender()
            words = ["I", " see", f" {len(images)}", " picture"]
            for index, word in enumerate(words):
                details = {"index": 0, "token_ids": [index], "finish_reason": None}
                if index == len(words) - 1:
                    details["finish_reason"] = "stop"
                    details["usage"] = {
                        "prompt_tokens": 5, "completion_tokens": len(words),
                        "image_tokens": 0, "cached_tokens": 0,
                    }
                texts = {"text": word, "details": json.dumps(details)}
                sender.send(pb_utils.InferenceResponse([
                    pb_utils.Tensor(name, np.array([text.encode()], dtype=object))
                    for name, text in texts.items()
                ]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
ANSWER_CONFIG = """
backend: "python"
model_transaction_policy { decoupled: true }
input [
  { name: "prompt" data_type: TYPE_STRING dims: [ 1 ] },
  { name: "images" data_type: TYPE_STRING dims: [ -1 ] },
  { name: "sampling" data_type: TYPE_STRING dims: [ 1 ] }
]
output [
  { name: "text" data_type: TYPE_STRING dims: [ 1 ] },
  { name: "details" data_type: TYPE_STRING dims: [ 1 ] }
]
parameters { key: "served_model_name" value { string_value: "fake" } }
"""
BROKEN = """
class TritonPythonModel:
    def initialize(self, args):
        raise RuntimeError("the graph was built for another model; rebuild it")
"""


def write_model(repository: Path, name: str, config: str, code: str) -> None:
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(f'name: "{name}"{config}', encoding="utf-8")
    (repository / name / "1" / "model.py").write_text(code, encoding="utf-8")


@pytest.fixture
def fakes(tmp_path: Path) -> Path:
    """A repository with model `fake`, which answers by itself, and two that only double numbers."""
    repository = tmp_path / "repository"
    write_model(repository, "fake", ANSWER_CONFIG, ANSWER)
    for model in ("fake-encoder", "fake-decoder"):
        write_model(repository, model, DOUBLE_CONFIG, DOUBLE)
    return repository


def processes_with(text: str) -> list[str]:
    """Command lines of running processes that mention `text`."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = process.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in command:
            found.append(command)
    return found


def test_a_started_server_answers_for_the_named_models_only(fakes: Path) -> None:
    with TritonServer(fakes, ["fake-encoder"]) as triton:
        with InferenceServerClient(triton.grpc_address) as client:
            numbers = np.array([1, 2, 3])
            feed = InferInput("x", [3], "INT64")
            feed.set_data_from_numpy(numbers)
            answer = client.infer("fake-encoder", [feed])
            assert answer.as_numpy("y").tolist() == [2, 4, 6]
            assert not client.is_model_ready("fake-decoder")
        assert httpx.get(triton.metrics_url, trust_env=False).is_success


def test_a_stopped_server_leaves_no_process_folder_or_shared_memory(fakes: Path) -> None:
    with TritonServer(fakes, ["fake-encoder"]) as triton:
        view = next(a for a in triton.process.argv if a.startswith("--model-repository="))
        run_dir = Path(view.partition("=")[2]).parent
        assert processes_with(run_dir.name)
    assert processes_with(run_dir.name) == []
    assert not run_dir.exists()
    assert list(Path("/dev/shm").glob(f"{run_dir.name}*")) == []


def test_a_model_that_cannot_load_is_named_with_its_reason(fakes: Path) -> None:
    write_model(fakes, "broken", DOUBLE_CONFIG, BROKEN)
    with (
        pytest.raises(LaunchError, match=r"could not load broken: .*; rebuild it$") as caught,
        TritonServer(fakes, ["broken"]),
    ):
        pass
    assert "broken" in caught.value.log_tail


def test_the_stack_serves_a_built_model_over_the_openai_api(fakes: Path, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    with ServingStack(fakes, "fake", log_dir=tmp_path / "logs") as stack:
        picture.write_bytes(sample_picture())
        with ChatClient(stack.base_url) as client:
            assert "".join(client.ask("What is this?", [picture])) == "I see 1 picture"
        stack.check()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_everything_that_serve_started(
    repository: Path, tmp_path: Path, number: signal.Signals
) -> None:
    (port,) = free_ports(1)
    command = [
        *(sys.executable, "-m", "triton_vlm", "serve", MODEL),
        *(
            "--repository",
            str(repository),
            "--port",
            str(port),
            "--log-dir",
            str(tmp_path / "logs"),
        ),
    ]
    # Its own folder for temporary files, so that every process it starts can be recognized.
    env = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as program:
        try:
            assert program.stdout is not None
            assert any("is ready" in line for line in program.stdout)
            assert len(processes_with(str(tmp_path))) >= 3  # serve, tritonserver and a stub
            os.kill(program.pid, number)
            assert program.wait(timeout=30) == 0
        finally:
            program.terminate()
    assert processes_with(f"--port {port}") == []
    assert processes_with(str(tmp_path)) == []
