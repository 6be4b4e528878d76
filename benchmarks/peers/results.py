"""Everything a comparison has measured, and what follows from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from benchmarks.environment import Environment
from benchmarks.floors import Floor, MachineSpeed, ModelWork, floor_of
from benchmarks.peers.metrics import (
    TOKENS_PER_S,
    TPOT_P50,
    TTFT_P50,
    Metric,
    again_over_first,
    leading_share,
    ratio,
)
from benchmarks.peers.plan import (
    MAX_AGAIN,
    MAX_COST,
    MAX_TPOT,
    MAX_TTFT,
    MIN_ARITHMETIC,
    MIN_BANDWIDTH,
    MIN_SERVED_OVER_OFFLINE,
    MIN_TOKENS_PER_S,
    PeerPlan,
)
from benchmarks.results import Target, in_words
from benchmarks.summary import Burst, Spread
from benchmarks.workload import Load


@dataclass(kw_only=True)
class EngineResult:
    """One engine; filled as it is measured.

    Attributes:
        name: of the peer.
        version: of what was measured.
        is_ours: whether it is this project's.
        is_served: whether it was asked over HTTP.
        bursts: by label of the load.
        speed: of the machine, just before it was started.
        cold_start_s: from starting it to the first token of the first answer; the shorter one of two starts,
            because files are in the page cache at the second.
        peak_bytes: memory of all its processes in a burst of eight pictures, shared pages once.
        failure: why something is missing, None when nothing is.
    """

    name: str
    version: str
    is_ours: bool
    is_served: bool
    speed: MachineSpeed | None = None
    bursts: dict[str, list[Burst]] = field(default_factory=dict)
    cold_start_s: float | None = None
    peak_bytes: int | None = None
    failure: str | None = None


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Answers of Hugging Face to the first requests of the first burst of a load."""

    token_ids: Sequence[Sequence[int]]
    texts: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class PeerResults:
    """One comparison.

    Attributes:
        environment: where and with what.
        model: name of the checkpoint.
        plan: what was measured.
        speeds: of the machine, before each engine: it should not change meanwhile.
        work: of the model.
        num_prompt_tokens: by label of the load; of its longest prompt.
        engines: in the order in which they were measured.
        references: by label of the load.
        resumed: when the run went on after an interruption.
    """

    environment: Environment
    model: str
    plan: PeerPlan
    speeds: list[MachineSpeed]
    work: ModelWork
    num_prompt_tokens: Mapping[str, int]
    engines: list[EngineResult] = field(default_factory=list)
    references: dict[str, Reference] = field(default_factory=dict)
    resumed: list[str] = field(default_factory=list)

    @property
    def speed(self) -> MachineSpeed:
        """The middle one of all that were measured: a shared machine is twice as fast for a moment."""
        return MachineSpeed(
            read_bytes_per_s=median(speed.read_bytes_per_s for speed in self.speeds),
            flops_per_s=median(speed.flops_per_s for speed in self.speeds),
        )

    def floor(self, load: Load, speed: MachineSpeed | None = None) -> Floor:
        """The least time a load without caches can take at a speed, by default `speed`."""
        return floor_of(self.work, speed or self.speed, load, self.num_prompt_tokens[load.label])

    # --- comparing ------------------------------------------------------------------------------

    def ours(self, *, is_served: bool) -> EngineResult | None:
        """This project's engine of a kind."""
        return next((e for e in self.engines if e.is_ours and e.is_served == is_served), None)

    def peers(self, *, is_served: bool) -> list[EngineResult]:
        """The others of that kind."""
        return [e for e in self.engines if not e.is_ours and e.is_served == is_served]

    def equal_answers(self, engine: EngineResult, load: Load) -> tuple[int, int, float]:
        """Answers that equal Hugging Face's, those compared, and the mean share before a difference.

        Token ids are compared where the engine tells them, else texts without replacement characters:
        servers differ in how many they send for bytes that are no character.
        """
        reference = self.references.get(load.label)
        bursts = engine.bursts.get(load.label)
        if reference is None or not bursts:
            return 0, 0, 0.0
        shares = []
        for i, (token_ids, text) in enumerate(
            zip(reference.token_ids, reference.texts, strict=True)
        ):
            told = bursts[0].token_ids
            shares.append(
                leading_share(told[i], token_ids)
                if told is not None
                else leading_share(_plain(bursts[0].texts[i]), _plain(text))
            )
        return sum(share == 1 for share in shares), len(shares), sum(shares) / len(shares)

    def all_equal_answers(self, engine: EngineResult) -> tuple[int, int, float]:
        """The same over all loads."""
        counts = [self.equal_answers(engine, load) for load in self.plan.loads]
        num_compared = sum(num for _, num, _ in counts)
        share = sum(num * share for _, num, share in counts) / max(num_compared, 1)
        return sum(num_equal for num_equal, _, _ in counts), num_compared, share

    def to_json(self) -> str:
        """Every timing and everything that follows; answers are left out, they are noise."""
        data: dict[str, Any] = asdict(self)
        del data["references"]
        for engine, result in zip(data["engines"], self.engines, strict=True):
            for bursts in engine["bursts"].values():
                for burst in bursts:
                    del burst["texts"], burst["token_ids"]
            engine["equal_answers"] = {
                load.label: self.equal_answers(result, load) for load in self.plan.loads
            }
        data["targets"] = [asdict(target) for target in self.targets()]
        return json.dumps(data, indent=1) + "\n"

    # --- promises -------------------------------------------------------------------------------

    def targets(self) -> list[Target]:
        """What was promised, and whether it holds; nothing of what was not measured."""
        targets: list[Target] = []
        for is_served in (True, False):
            ours = self.ours(is_served=is_served)
            if ours is not None:
                targets += self._targets_of(ours)
        served, offline = self.ours(is_served=True), self.ours(is_served=False)
        load = self._pictures(8)
        if served and offline and load and {load.label} <= served.bursts.keys() & offline.bursts:
            both = [TOKENS_PER_S.spread(e.bursts[load.label]) for e in (served, offline)]
            found = ratio(*both)
            targets.append(
                Target(
                    f"served / offline, tokens/s, {load.label}",
                    f"at least {MIN_SERVED_OVER_OFFLINE:.2f}",
                    in_words(found),
                    found.median >= MIN_SERVED_OVER_OFFLINE,
                )
            )
        return targets

    def _targets_of(self, ours: EngineResult) -> list[Target]:
        one, eight, many = (self._pictures(n) for n in (1, 8, 16))
        comparisons = [
            (TOKENS_PER_S, eight, MIN_TOKENS_PER_S),
            (TOKENS_PER_S, many, MIN_TOKENS_PER_S),
            (TTFT_P50, one, MAX_TTFT),
            (TTFT_P50, eight, MAX_TTFT),
            (TPOT_P50, one, MAX_TPOT),
        ]
        found = [
            self._against_best(ours, metric, load, limit)
            for metric, load, limit in comparisons
            if load is not None
        ]
        found += [self._cost(ours, "cold start s", lambda engine: engine.cold_start_s)]
        found += [self._cost(ours, "memory GB", _memory_gb)]
        targets = [target for target in found if target is not None]
        return targets + self._own_targets(ours)

    def _pictures(self, concurrency: int) -> Load | None:
        return next(
            (
                load
                for load in self.plan.plain_loads
                if load.has_picture and not load.mean_gap_s and load.concurrency == concurrency
            ),
            None,
        )

    def _against_best(
        self, ours: EngineResult, metric: Metric, load: Load, limit: float
    ) -> Target | None:
        peers = [e for e in self.peers(is_served=ours.is_served) if load.label in e.bursts]
        if load.label not in ours.bursts or not peers:
            return None
        spreads = {peer.name: metric.spread(peer.bursts[load.label]) for peer in peers}
        choose = max if metric.is_better_high else min
        best = choose(spreads, key=lambda name: spreads[name].median)
        found = ratio(metric.spread(ours.bursts[load.label]), spreads[best])
        is_met = found.median >= limit if metric.is_better_high else found.median <= limit
        return Target(
            f"{ours.name}: {metric.name}, {load.label}",
            f"{'at least' if metric.is_better_high else 'at most'} {limit:.1f} of the best peer's",
            f"{in_words(found)} of {best}'s",
            is_met,
        )

    def _cost(
        self, ours: EngineResult, name: str, of: Callable[[EngineResult], float | None]
    ) -> Target | None:
        costs = {
            peer.name: cost
            for peer in self.peers(is_served=ours.is_served)
            if (cost := of(peer)) is not None
        }
        own = of(ours)
        if own is None or not costs:
            return None
        best = min(costs, key=costs.__getitem__)
        return Target(
            f"{ours.name}: {name}",
            "at most the best peer's",
            f"{own:.2f}, {own / costs[best]:.2f} of {best}'s",
            own <= MAX_COST * costs[best],
        )

    def _own_targets(self, ours: EngineResult) -> list[Target]:
        targets = []
        one = self._pictures(1)
        if one is not None and one.label in ours.bursts:
            floor, bursts = self.floor(one, ours.speed), ours.bursts[one.label]
            for name, share, least in (
                (
                    "decode, share of memory bandwidth",
                    floor.tpot_s * 1e3 / TPOT_P50.spread(bursts).median,
                    MIN_BANDWIDTH,
                ),
                (
                    "prompt, share of matrix product speed",
                    floor.ttft_s / TTFT_P50.spread(bursts).median,
                    MIN_ARITHMETIC,
                ),
            ):
                wanted = f"at least {least:.0%}"
                title = f"{ours.name}: {name}, {one.label}"
                targets.append(Target(title, wanted, f"{share:.0%}", share >= least))
        for load in self.plan.cached_loads:
            if load.label in ours.bursts and load.concurrency == 1:
                again = Spread.of([again_over_first(burst) for burst in ours.bursts[load.label]])
                title = f"{ours.name}: TTFT again / first, {load.label}"
                wanted = f"at most {MAX_AGAIN:.1f}"
                targets.append(Target(title, wanted, in_words(again), again.median <= MAX_AGAIN))
        num_equal, num_compared, _ = self.all_equal_answers(ours)
        # Weights of fewer bits make other answers.
        if num_compared and self.plan.precision == "fp32":
            targets.append(
                Target(
                    f"{ours.name}: answers = Hugging Face's",
                    "all",
                    f"{num_equal} of {num_compared}",
                    num_equal == num_compared,
                )
            )
        return targets


def _memory_gb(engine: EngineResult) -> float | None:
    return None if engine.peak_bytes is None else engine.peak_bytes / 1e9


def _plain(text: str) -> str:
    return text.replace("\ufffd", "")
