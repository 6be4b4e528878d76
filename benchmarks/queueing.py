"""Who waits for whom: `python -m benchmarks.queueing` sends random arrivals through the real scheduler.

Time is computed from what steps cost, so nothing else disturbs it and every run gives the same table: times
to the first token by length of the prompt, served as they come and with short prompts first, by `aging`.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.report import markdown_table
from python_backend.choices import Request
from python_backend.scheduler import AGING, Scheduler, StepPlan

AS_THEY_COME = 1e9
"""`aging` under which a prompt that came later is longer than any other."""

_NUM_SEQS = 16
_CHUNK = 512


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of steps; the defaults are those of the 0.5B-shaped model in int8 on two cores.

    Attributes:
        prompt_token: a token of a prompt.
        decode_step: a step, whatever runs in it.
        row: each row of it besides.
    """

    prompt_token: float = 0.0023
    decode_step: float = 0.018
    row: float = 0.0026

    def of(self, plan: StepPlan) -> float:
        """Of one step."""
        if plan.kind == "prefill":
            return self.prompt_token * plan.num_scheduled_tokens
        return self.decode_step + self.row * plan.num_scheduled_tokens


@dataclass(frozen=True, slots=True)
class Mix:
    """What arrives, at random times.

    Attributes:
        prompts: shares and tokens of the kinds of prompts.
        outputs: tokens of answers, equally often.
        load: seconds of work that arrive per second.
        num_requests: in all.
    """

    prompts: tuple[tuple[float, int], ...] = ((0.3, 80), (0.6, 320), (0.1, 4000))
    outputs: tuple[int, ...] = (16, 64, 128)
    load: float = 0.8
    num_requests: int = 400

    def arrivals(self, costs: Costs, seed: int) -> list[tuple[float, int, int]]:
        """Time, tokens of the prompt and of the answer of each request."""
        rng = random.Random(seed)
        shares, lengths = zip(*self.prompts, strict=True)
        prompt = sum(share * length for share, length in self.prompts) * costs.prompt_token
        share_of_step = costs.decode_step / (_NUM_SEQS / 2)  # as if half of the rows ran
        answer = statistics.mean(self.outputs) * (costs.row + share_of_step)
        now, found = 0.0, []
        for _ in range(self.num_requests):
            now += rng.expovariate(self.load / (prompt + answer))
            found.append((now, rng.choices(lengths, shares)[0], rng.choice(self.outputs)))
        return found


class _Nothing:
    """A prompt that begins like no other."""

    def num_common(self, earlier: _Nothing, output_token_ids: Sequence[int]) -> int:
        return 2**31 if earlier is self else 0


def first_tokens(mix: Mix, costs: Costs, aging: float, seed: int) -> Iterator[tuple[int, float]]:
    """Tokens of the prompt of each request, and seconds until its first token."""
    scheduler = Scheduler(
        max_num_seqs=_NUM_SEQS,
        max_num_batched_tokens=_CHUNK,
        max_model_len=8192,
        max_waiting=mix.num_requests,
        aging=aging,
    )
    coming = mix.arrivals(costs, seed)[::-1]
    came: dict[Request, float] = {}
    now = 0.0
    while coming or scheduler.has_unfinished:
        if not scheduler.has_unfinished:
            now = max(now, coming[-1][0])
        while coming and coming[-1][0] <= now:
            arrival, num_prompt, num_output = coming.pop()
            request = Request(str(len(came)), num_prompt, num_output, key=_Nothing())
            came[request] = arrival
            scheduler.add_request(request)
        plan = scheduler.schedule()
        assert plan is not None
        now += costs.of(plan)
        scheduler.update(plan)
        for choice in plan.choices:
            if choice.num_output_tokens == 0:
                yield choice.request.num_prompt_tokens, now - came[choice.request]
            scheduler.append(choice, 0)


def table(mix: Mix, costs: Costs, agings: Sequence[float], num_seeds: int) -> str:
    """Times to the first token, as Markdown."""
    rows: list[tuple[str, ...]] = []
    for aging in agings:
        times: dict[int, list[float]] = {length: [] for _, length in mix.prompts}
        for seed in range(num_seeds):
            for length, seconds in first_tokens(mix, costs, aging, seed):
                times[length].append(seconds)
        name = "as they come" if aging == AS_THEY_COME else f"{aging:g}"
        for length, of_length in times.items():
            cuts = statistics.quantiles(of_length, n=100)
            figures = (statistics.mean(of_length), cuts[49], cuts[98])
            cells = [f"{figure:.2f}" for figure in figures]
            rows.append((f"{mix.load}", name, f"{length}", *cells))
    return markdown_table(["load", "aging", "prompt", "mean s", "p50 s", "p99 s"], rows)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.queueing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--load", type=float, nargs="+", default=[0.5, 0.8], help="(0.5 0.8)")
    parser.add_argument("--seeds", type=int, default=12, help="runs of 400 requests (%(default)s)")
    options = parser.parse_args()
    for load in options.load:
        agings = (AS_THEY_COME, 0.0, AGING, 1.0)
        print(table(Mix(load=load), Costs(), agings, options.seeds), end="\n\n")


if __name__ == "__main__":
    main()
