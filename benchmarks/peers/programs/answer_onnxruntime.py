"""onnxruntime-genai: python answer_onnxruntime.py <converted checkpoint> <longest request in tokens>."""

from __future__ import annotations

import sys
import time
from typing import Any

import lines
import onnxruntime_genai

model = onnxruntime_genai.Model(sys.argv[1])
max_length = int(sys.argv[2])
processor = model.create_multimodal_processor()


def answer(requests: list[lines.Request]) -> list[dict[str, Any]]:
    """Compute one request after another; all of them have come at the same moment."""
    start = time.perf_counter()
    return [_answer(request, start) for request in requests]


def _answer(request: lines.Request, start: float) -> dict[str, Any]:
    pictures = lines.pictures(request)
    images = onnxruntime_genai.Images.open_bytes(*pictures) if pictures else None
    params = onnxruntime_genai.GeneratorParams(model)
    params.set_search_options(max_length=max_length, do_sample=False)
    generator = onnxruntime_genai.Generator(model, params)
    generator.set_inputs(processor(request["prompt"], images=images))
    token_ids: list[int] = []
    times: list[float] = []
    while len(token_ids) < request["num_tokens"] and not generator.is_done():
        generator.generate_next_token()
        token_ids.append(int(generator.get_next_tokens()[0]))
        times.append(time.perf_counter() - start)
    return {
        "ttft_s": times[0],
        "total_s": times[-1],
        "token_ids": token_ids,
        "num_prompt_tokens": generator.token_count() - len(token_ids),
    }


lines.serve(answer)
