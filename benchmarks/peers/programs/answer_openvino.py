"""OpenVINO GenAI: python answer_openvino.py <converted checkpoint> --max-num-seqs N [--caches] [--exact]."""

from __future__ import annotations

import argparse
import io
import time
from pathlib import Path
from typing import Any

import lines
import numpy as np
import openvino
import openvino_genai
from PIL import Image

_PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
_CACHE_GB = 1

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model", type=Path)
parser.add_argument("--max-num-seqs", type=int, required=True)
parser.add_argument("--caches", action="store_true", help="keep prefixes")
parser.add_argument("--exact", action="store_true", help="compute and keep everything in float32")
arguments = parser.parse_args()

scheduler = openvino_genai.SchedulerConfig()
scheduler.max_num_seqs = arguments.max_num_seqs
scheduler.enable_prefix_caching = arguments.caches
scheduler.cache_size = _CACHE_GB
exact = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
}
pipeline = openvino_genai.ContinuousBatchingPipeline(
    str(arguments.model), scheduler, "CPU", exact if arguments.exact else {}
)
tokenizer = pipeline.get_tokenizer()


def answer(requests: list[lines.Request]) -> list[dict[str, Any]]:
    """Hand in all requests at once and compute them to the end."""
    times: list[list[float]] = [[] for _ in requests]
    token_ids: list[list[int]] = [[] for _ in requests]
    start = time.perf_counter()
    handles = []
    for i, request in enumerate(requests):
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = request["num_tokens"]
        config.ignore_eos = True
        config.do_sample = False
        config.apply_chat_template = False
        pictures = [_tensor(data) for data in lines.pictures(request)]
        prompt = request["prompt"]
        for number in range(len(pictures)):
            prompt = prompt.replace(_PICTURE, f"<ov_genai_image_{number}>", 1)
        handles.append(pipeline.add_request(i, prompt, pictures, config))
    while pipeline.has_non_finished_requests():
        pipeline.step()
        now = time.perf_counter() - start
        for i, handle in enumerate(handles):
            while handle.can_read():
                for output in handle.read().values():
                    token_ids[i] += output.generated_ids
                times[i].append(now)
    return [
        {
            "ttft_s": times[i][0],
            "total_s": times[i][-1],
            "token_ids": [int(token) for token in token_ids[i]],
            "num_prompt_tokens": handle.get_perf_metrics().get_num_input_tokens(),
        }
        for i, handle in enumerate(handles)
    ]


def _tensor(data: bytes) -> openvino.Tensor:
    with Image.open(io.BytesIO(data)) as image:
        return openvino.Tensor(np.asarray(image.convert("RGB"))[None])


lines.serve(answer)
