"""The same engine in one process, without Triton and HTTP: what serving is compared with."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from benchmarks.processes import CpuMeter
from benchmarks.summary import Burst, RequestTiming
from benchmarks.workload import Load, Workload
from python_backend.request import RequestOutput
from python_backend.sampling_params import SamplingParams
from python_backend.vlm import VLM


class OfflineEngine:
    """A `VLM` with the settings that the server runs with; meant for a worker process.

    Args:
        folder: `<model repository>/<name>`.
        tokenizer_file: for the workload.
    """

    def __init__(self, folder: Path, tokenizer_file: Path) -> None:
        os.setpgid(0, 0)  # a group of its own, so that its processor time is told from the client's
        self._vlm = VLM(folder)
        self._workload = Workload(tokenizer_file)

    def run(self, load: Load, repeat: int) -> Burst:
        """Hand in one burst at once and compute it to the end."""
        conversations = self._workload.conversations(load, repeat)
        first: dict[int, float] = {}
        last: dict[int, float] = {}

        def note_time(index: int, output: RequestOutput) -> None:
            last[index] = time.perf_counter() - start
            first.setdefault(index, last[index])

        with CpuMeter([os.getpgrp()], time.perf_counter) as cpu:
            start = time.perf_counter()
            answers = self._vlm.generate(conversations, self._sampling(load), note_time)
            wall_s = time.perf_counter() - start
        usages = [answer.choices[0].usage for answer in answers]
        return Burst(
            requests=[
                RequestTiming(
                    ttft_s=first[i],
                    total_s=last[i],
                    num_tokens=len(answers[i].token_ids),
                    num_prompt_tokens=usage.prompt_tokens if usage else 0,
                )
                for i, usage in enumerate(usages)
            ],
            wall_s=wall_s,
            cpu_s=cpu.cpu_s,
            foreign_cpu_share=cpu.foreign_share,
            texts=[answer.text for answer in answers],
            token_ids=[list(answer.token_ids) for answer in answers],
        )

    def _sampling(self, load: Load) -> SamplingParams:
        """What the server makes of the client's parameters."""
        asked = {"max_tokens": load.num_output_tokens, "temperature": 0, "ignore_eos": True}
        defaults = self._vlm.model.manifest.sampling_defaults
        return SamplingParams.from_json(json.dumps({**defaults, **asked}))
