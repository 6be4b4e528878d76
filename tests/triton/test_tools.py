"""Tool calls and reasoning from the real Triton: two tiny random models whose templates take tools.

Random weights never write a call by themselves; what comes out is the grammar's doing.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from tokenizers import Tokenizer

from tests.conftest import TinyModel
from tests.tiny.pictures import png
from tests.tiny.shapes import THINKING, TOOLS
from tests.triton.conftest import image_part
from tests.triton.node_client import run_node
from triton_vlm.repository_view import stage_models
from triton_vlm.stack import ServingStack
from triton_vlm.triton_server import TritonPorts, TritonServer

EXAMPLE = Path(__file__).parents[2] / "examples" / "tool_calls.py"
SHAPE = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "green"]},
        "size": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["colour", "size"],
    "additionalProperties": False,
}
DRAW = {"type": "function", "function": {"name": "draw", "parameters": SHAPE}}
CLEAR = {"type": "function", "function": {"name": "clear"}}
PICTURE = image_part(png(64, 48))
LOOK = [{"role": "user", "content": [PICTURE, {"type": "text", "text": "Draw it."}]}]


@pytest.fixture(scope="module")
def stack(
    tiny_models: Callable[[str], TinyModel], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServingStack]:
    """Both models in one repository, one Triton and one proxy."""
    repository, names = tmp_path_factory.mktemp("tools"), (TOOLS.name, THINKING.name)
    for name in names:
        for folder in tiny_models(name).model.folder.parent.iterdir():
            (repository / folder.name).symlink_to(folder)
    ports = TritonPorts.choose()
    logs = tmp_path_factory.mktemp("tools_logs")
    serving = ServingStack(repository, TOOLS.name, triton_ports=ports, log_dir=logs)
    models = [model for name in names for model in stage_models(repository, name)]
    serving.triton = TritonServer(repository, models, ports=ports)
    with serving:
        yield serving


@pytest.fixture(scope="module")
def client(stack: ServingStack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=stack.base_url, api_key="None", max_retries=0) as found:
        yield found


def create(client: openai.OpenAI, **fields: Any) -> Any:
    given = {"model": TOOLS.name, "messages": LOOK, "tools": [DRAW, CLEAR], "max_tokens": 200}
    return client.chat.completions.create(**(given | {"temperature": 1, "seed": 1} | fields))


def check_calls(calls: Any) -> None:
    for call in calls:
        arguments = json.loads(call.function.arguments)
        if call.function.name == "draw":
            assert arguments.keys() == {"colour", "size"}
            assert arguments["colour"] in ("red", "green")
            assert arguments["size"] in range(10)
        else:
            assert (call.function.name, arguments) == ("clear", {})


def test_required_calls_are_valid_whatever_the_model_would_say(client: openai.OpenAI) -> None:
    def ask(seed: int) -> Any:
        fields = {"tool_choice": "required", "parallel_tool_calls": False, "seed": seed}
        return create(client, **fields).choices[0]

    with ThreadPoolExecutor(4) as pool:
        choices = list(pool.map(ask, range(8)))
    for choice in choices:
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        (call,) = choice.message.tool_calls
        check_calls([call])


def test_a_named_function_is_called(client: openai.OpenAI) -> None:
    choice = {"type": "function", "function": {"name": "draw"}}
    (call,) = create(client, tool_choice=choice).choices[0].message.tool_calls
    assert call.function.name == "draw"
    check_calls([call])


def test_a_stream_of_calls_is_the_same_as_the_whole_answer(client: openai.OpenAI) -> None:
    fields = {"tool_choice": "required", "parallel_tool_calls": False}
    (whole,) = create(client, **fields).choices[0].message.tool_calls
    chunks = list(create(client, stream=True, **fields))
    deltas = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert deltas[0].function.name == whole.function.name
    assert "".join(delta.function.arguments for delta in deltas) == whole.function.arguments
    assert len(deltas) > 2 or whole.function.arguments == "{}"
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_calls_and_pictures_of_tools_are_answered(client: openai.OpenAI) -> None:
    choice = {"type": "function", "function": {"name": "draw"}}
    first = create(client, tool_choice=choice)
    message = first.choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": [PICTURE]}
    answer = create(client, messages=[*LOOK, message, result], max_tokens=8)
    images = [reply.usage.prompt_tokens_details.image_tokens for reply in (first, answer)]
    assert images[1] == 2 * images[0] > 0


def test_calls_that_the_model_begins_itself_are_valid(
    client: openai.OpenAI, tiny_models: Callable[[str], TinyModel]
) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_models(TOOLS.name).checkpoint / "tokenizer.json"))
    bias = {str(tokenizer.token_to_id("<tool_call>")): 100}
    choice = create(client, logit_bias=bias, parallel_tool_calls=False).choices[0]
    assert choice.finish_reason == "tool_calls"
    check_calls(choice.message.tool_calls)
    free = create(client, logit_bias=bias, tool_choice="none", max_tokens=8).choices[0]
    assert free.message.tool_calls is None
    assert "<tool_call>" in free.message.content


def test_a_schema_that_cannot_be_enforced_is_an_error(client: openai.OpenAI) -> None:
    tool = {"type": "function", "function": {"name": "a", "parameters": {**SHAPE, "not": {}}}}
    with pytest.raises(openai.BadRequestError, match="cannot be enforced") as caught:
        create(client, tools=[tool])
    assert caught.value.param == "tools"


def test_reasoning_ends_before_calls_begin(
    client: openai.OpenAI, tiny_models: Callable[[str], TinyModel]
) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_models(THINKING.name).checkpoint / "tokenizer.json"))
    end = str(tokenizer.token_to_id("</think>"))
    fields = {"tool_choice": "required", "parallel_tool_calls": False, "model": THINKING.name}
    answer = create(client, logit_bias={end: 4}, max_tokens=400, **fields)
    message = answer.choices[0].message
    check_calls(message.tool_calls)
    assert message.content is None
    assert message.reasoning_content
    details = answer.usage.completion_tokens_details
    assert 0 < details.reasoning_tokens < answer.usage.completion_tokens
    thinking = create(client, logit_bias={end: -100}, max_tokens=16, model=THINKING.name)
    assert thinking.choices[0].message.content == ""
    assert thinking.usage.completion_tokens_details.reasoning_tokens == 16


def test_the_node_client_calls_and_answers(stack: ServingStack) -> None:
    printed = run_node("tools", stack.base_url, TOOLS.name, png(64, 48))
    for choice in (printed["whole"], printed["streamed"]):
        assert choice["finish_reason"] == "tool_calls"
        (call,) = choice["message"]["tool_calls"]
        arguments = json.loads(call["function"]["arguments"])
        assert call["function"]["name"] == "draw"
        assert arguments.keys() == {"colour", "count"}
        assert arguments["count"] in range(10)
    assert printed["after"]["finish_reason"] in ("stop", "length")
    assert not printed["after"]["message"].get("tool_calls")


def test_a_model_that_always_reasons_cannot_be_told_not_to(stack: ServingStack) -> None:
    """Its template opens the reasoning in any case."""
    asked = {"messages": [{"role": "user", "content": "Draw."}], "thinking": {"type": "disabled"}}
    for path in ("messages", "messages/count_tokens"):
        fields = asked | ({"max_tokens": 4} if path == "messages" else {})
        url = f"{stack.base_url}/{path}"
        refused, answered = (
            httpx.post(url, json={"model": name} | fields, timeout=60)
            for name in (THINKING.name, TOOLS.name)
        )
        assert refused.status_code == 400
        assert refused.json()["error"]["message"].startswith("thinking: ")
        assert answered.status_code == 200, answered.text


def test_models_say_what_they_can(client: openai.OpenAI) -> None:
    models = {model.id: model for model in client.models.list()}
    assert [models[name].calls_tools for name in (TOOLS.name, THINKING.name)] == [True, True]
    assert [models[name].reasons for name in (TOOLS.name, THINKING.name)] == [False, True]


def test_the_example_runs_as_it_is_written(stack: ServingStack) -> None:
    command = [sys.executable, str(EXAMPLE), stack.base_url, TOOLS.name]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=100).stdout
    assert output.startswith("count_in_stock(")
    assert " -> " in output.splitlines()[0]
