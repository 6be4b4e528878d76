"""What drafts by prompt lookup bring: `python -m benchmarks.speculation <model repository>/<name>`.

A model with random weights repeats itself when it decodes greedily, and does not when it draws from all
tokens; one that was trained also does what it is told.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from python_backend.config import EngineConfig
from python_backend.sampling_params import SamplingParams
from python_backend.vlm import VLM, Generation

_NUM_TOKENS = 128
_NUM_REPEATS = 5
_TEXT = (
    "Item 1: two red circles, 30 mm. Item 2: one blue square, 45 mm. Item 3: four green triangles, "
    "12 mm. Item 4: two yellow stars, 27 mm. Item 5: nine black lines, 60 mm."
)
_LOADS = {
    "repeats": (f"Repeat this text word for word: {_TEXT}", 0.0),
    "does not repeat": ("Tell a story that nobody has ever heard.", 1.0),
}


def _generate(vlm: VLM, prompt: str, temperature: float, num_requests: int) -> list[Generation]:
    sampling = SamplingParams(
        temperature=temperature, seed=1, max_tokens=_NUM_TOKENS, ignore_eos=True
    )
    messages = [{"role": "user", "content": prompt}]
    return vlm.generate([messages] * num_requests, sampling)


def _share_accepted(answers: Sequence[Generation]) -> str:
    usages = [choice.usage for answer in answers for choice in answer.choices if choice.usage]
    drafted = sum(usage.draft_tokens for usage in usages)
    return f"{sum(usage.accepted_draft_tokens for usage in usages)} of {drafted}"


def main() -> None:
    """Print tokens/s without and with drafts, in turn with the same requests, and compare the tokens."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="<model repository>/<name>, for ONNX Runtime")
    folder = parser.parse_args().folder
    print("load | requests | tokens/s without | with | ratio | drafts accepted | equal tokens")
    without, with_ = VLM(folder, EngineConfig(max_draft_tokens=0)), VLM(folder)
    for name, (prompt, temperature) in _LOADS.items():
        for num_requests in (1, 2, 4, 8):
            seconds: dict[VLM, list[float]] = {without: [], with_: []}
            answers: dict[VLM, list[Generation]] = {}
            for repeat in range(1 + _NUM_REPEATS):
                for vlm, times in seconds.items():
                    start = time.perf_counter()
                    answers[vlm] = _generate(vlm, prompt, temperature, num_requests)
                    if repeat:  # the first one fills the prefix cache
                        times.append(time.perf_counter() - start)
            slow, fast = (
                num_requests * _NUM_TOKENS / statistics.median(times) for times in seconds.values()
            )
            pairs = zip(answers[without], answers[with_], strict=True)
            is_equal = all(one.token_ids == other.token_ids for one, other in pairs)
            accepted = _share_accepted(answers[with_])
            print(
                f"{name} | {num_requests} | {slow:.1f} | {fast:.1f} | {fast / slow:.2f} | {accepted} | "
                f"{'yes' if is_equal else 'no'}",
                flush=True,
            )
    without.close()
    with_.close()


if __name__ == "__main__":
    main()
