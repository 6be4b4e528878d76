from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.client import Request
from benchmarks.peers.engine import ProgramEngine
from benchmarks.peers.own import PROGRAMS
from triton_vlm.launch_error import LaunchError

PROGRAM = f"""
import sys
sys.path.insert(0, {str(PROGRAMS)!r})
import lines

def answer(requests):
    print("noise of a library")
    return [
        {{
            "ttft_s": 1.0,
            "total_s": 2.0,
            "token_ids": [len(lines.pictures(request)), len(request["prompt"])],
            "num_prompt_tokens": 3,
        }}
        for request in requests
    ]

lines.serve(answer)
"""


def start(tmp_path: Path, program: str) -> ProgramEngine:
    return ProgramEngine(
        "program",
        [sys.executable, "-c", program],
        env={},
        prompt=lambda messages: "abcd",
        text=str,
        logs=tmp_path,
    )


def ask(engine: ProgramEngine, num_tokens: int = 2) -> list[list[int]]:
    content = [
        {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,QUJD"}},
        {"type": "text", "text": "what?"},
    ]
    request = Request(messages=[{"role": "user", "content": content}], num_tokens=num_tokens)
    return [list(answer.token_ids or ()) for answer in engine.ask([request, request])]


def test_a_program_answers_and_what_its_libraries_print_does_no_harm(tmp_path: Path):
    engine = start(tmp_path, PROGRAM)
    try:
        assert ask(engine) == ask(engine) == [[1, 4], [1, 4]]
    finally:
        engine.stop()


def test_an_answer_of_another_length_is_refused(tmp_path: Path):
    engine = start(tmp_path, PROGRAM)
    try:
        with pytest.raises(RuntimeError, match="asked for 3 tokens, got 2"):
            ask(engine, num_tokens=3)
    finally:
        engine.stop()


def test_a_program_that_ends_says_why(tmp_path: Path):
    with pytest.raises(LaunchError, match="program ended") as caught:
        start(tmp_path, "raise SystemExit('no such model')")
    assert caught.value.log_tail == "no such model"
