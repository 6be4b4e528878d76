"""Hugging Face `generate`, one request after another: the reference."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, GenerationConfig
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging

from benchmarks.processes import CpuMeter
from benchmarks.summary import Burst, RequestTiming
from benchmarks.workload import Load, Messages, Workload
from python_backend.manifest import ModelFolder
from python_backend.preprocess import Preprocessor
from python_backend.vlm import split_images


def why_no_cuda() -> str:
    """Why Hugging Face cannot compute on a GPU, empty when it can."""
    return "" if torch.cuda.is_available() else f"torch {torch.__version__} sees no CUDA device"


class HuggingFaceEngine:
    """The checkpoint in transformers; meant for a worker process.

    Inputs come from the project's own preprocessing, which equals the Hugging Face processor's.

    Args:
        checkpoint: its folder.
        model_folder: the model built from it, for the preprocessing.
        tokenizer_file: for the workload.
        device: cpu, where it computes in fp32, or cuda, where it does in bf16.
    """

    def __init__(
        self, checkpoint: Path, model_folder: Path, tokenizer_file: Path, device: str = "cpu"
    ) -> None:
        os.setpgid(0, 0)  # see `OfflineEngine`
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        model: Any = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=dtype)
        self._model = model.eval().to(device)
        self._device = device
        built = ModelFolder.open(model_folder)
        self._preprocessor = Preprocessor(built)
        self._workload = Workload(tokenizer_file)

    def run(self, load: Load, repeat: int, max_requests: int | None = None) -> Burst:
        """Answer the requests of one burst in turn; each one's clock starts when its turn comes.

        Args:
            load: what is asked.
            repeat: number of the burst.
            max_requests: the first ones of the burst are answered; None for all.
        """
        conversations = self._workload.conversations(load, repeat)[:max_requests]
        with CpuMeter([os.getpgrp()], time.perf_counter) as cpu:
            start = time.perf_counter()
            answers = [self._answer(messages, load.num_output_tokens) for messages in conversations]
            wall_s = time.perf_counter() - start
        return Burst(
            requests=[timing for timing, _ in answers],
            wall_s=wall_s,
            cpu_s=cpu.cpu_s,
            foreign_cpu_share=cpu.foreign_share,
            texts=[],
            token_ids=[token_ids for _, token_ids in answers],
        )

    def _answer(self, messages: Messages, num_tokens: int) -> tuple[RequestTiming, list[int]]:
        clock = _TokenClock()
        prompt, images = split_images(messages)
        prepared = self._preprocessor.prepare({"messages": prompt}, images)
        family = self._preprocessor.family
        features = family.join_images(prepared.images) if images else {}
        input_ids = torch.from_numpy(prepared.prompt.token_ids)[None].to(self._device)
        with torch.inference_mode():
            sequences = self._model.generate(
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                mm_token_type_ids=(input_ids == family.placeholder_id).int(),
                **{
                    name: torch.from_numpy(array).to(self._device)
                    for name, array in features.items()
                },
                # No end-of-sequence token: the answer has exactly this length.
                generation_config=GenerationConfig(  # type: ignore[no-untyped-call]
                    do_sample=False, min_new_tokens=0, max_new_tokens=num_tokens, pad_token_id=0
                ),
                streamer=clock,
            )
        token_ids = sequences[0, input_ids.shape[1] :].tolist()
        return clock.timing(len(token_ids), input_ids.shape[1]), token_ids


class _TokenClock(BaseStreamer):
    """Notes when tokens come."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._times_s: list[float] = []

    def put(self, value: object) -> None:
        """Take the prompt, then one token at a time."""
        self._times_s.append(time.perf_counter() - self._start)

    def end(self) -> None:
        """Nothing more comes."""

    def timing(self, num_tokens: int, num_prompt_tokens: int) -> RequestTiming:
        """What was noted; the first entry is the prompt's."""
        return RequestTiming(
            ttft_s=self._times_s[1],
            total_s=self._times_s[-1],
            num_tokens=num_tokens,
            num_prompt_tokens=num_prompt_tokens,
        )
