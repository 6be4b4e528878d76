"""The real Triton and the proxy with a model on the GPU, asked by the `openai` client."""

from __future__ import annotations

import sys
import venv
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
from fake_tensorrt import FakeTensorRt

from python_backend.manifest import ModelFolder
from python_backend.sampling_params import SamplingParams
from python_backend.vlm import VLM
from tests.gpu.test_device import CONVERSATIONS, PICTURE
from tests.triton.conftest import to_openai
from triton_vlm.stack import ServingStack

FAKES = Path(__file__).parents[1] / "fakes"
STAND_IN = (
    FAKES / "stand_in" / "tensorrt_rtx.py",
    *(FAKES / f"{name}.py" for name in ("fake_cupy", "fake_tensorrt", "toy_kernels")),
)
GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)


@pytest.fixture
def client(
    model: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[openai.OpenAI]:
    """Where TensorRT has a stand-in, the stages run in an environment that has it too."""
    if isinstance(sys.modules.get("tensorrt_rtx"), FakeTensorRt):
        venv.create(tmp_path / "env")
        (packages,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
        for path in STAND_IN:
            (packages / path.name).symlink_to(path)
        # Not the folder of the fakes: Triton has its own `triton_python_backend_utils`.
        paths = [path for path in sys.path if path and path != str(FAKES)]
        (packages / "tests.pth").write_text("\n".join(paths), encoding="utf-8")
        monkeypatch.setattr(sys, "executable", str(tmp_path / "env" / "bin" / "python"))
    stack = ServingStack(model.folder.parent, model.folder.name, log_dir=tmp_path)
    with stack, openai.OpenAI(base_url=stack.base_url, api_key="None", max_retries=0) as found:
        yield found


def _ask(client: openai.OpenAI, model: ModelFolder, conversation: list[dict]) -> str:
    answer = client.chat.completions.create(
        model=model.folder.name,
        messages=to_openai(conversation),
        temperature=0,
        max_tokens=GREEDY.max_tokens,
        extra_body={"ignore_eos": True},
    )
    return answer.choices[0].message.content


def test_served_answers_equal_those_of_one_process(client, model):
    conversations = [*CONVERSATIONS, PICTURE, PICTURE]
    with VLM(model.folder) as vlm:
        expected = [generation.text for generation in vlm.generate(conversations, GREEDY)]
    with ThreadPoolExecutor(len(conversations)) as pool:
        at_once = list(pool.map(lambda c: _ask(client, model, c), conversations))
    assert at_once == expected
    assert [_ask(client, model, conversation) for conversation in conversations] == expected
