"""The project's own engine: python answer_offline.py <model repository>/<name>."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import lines

from python_backend.request import RequestOutput
from python_backend.sampling_params import SamplingParams
from python_backend.vlm import VLM

vlm = VLM(Path(sys.argv[1]))


def answer(requests: list[lines.Request]) -> list[dict[str, Any]]:
    """Hand in all requests at once and compute them to the end."""
    first: dict[int, float] = {}
    last: dict[int, float] = {}

    def note_time(index: int, output: RequestOutput) -> None:
        last[index] = time.perf_counter() - start
        first.setdefault(index, last[index])

    asked = {"max_tokens": requests[0]["num_tokens"], "temperature": 0, "ignore_eos": True}
    defaults = vlm.model.manifest.sampling_defaults
    sampling = SamplingParams.from_json(json.dumps({**defaults, **asked}))
    start = time.perf_counter()
    answers = vlm.generate([request["messages"] for request in requests], sampling, note_time)
    usages = [one.choices[0].usage for one in answers]
    return [
        {
            "ttft_s": first[i],
            "total_s": last[i],
            "token_ids": list(one.token_ids),
            "num_prompt_tokens": usage.prompt_tokens if usage else 0,
        }
        for i, (one, usage) in enumerate(zip(answers, usages, strict=True))
    ]


lines.serve(answer)
