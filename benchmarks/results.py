"""Everything one run has measured, and what follows from it: floors, equal tokens and targets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.environment import Environment
from benchmarks.floors import Floor, MachineSpeed, ModelWork, floor_of
from benchmarks.plan import (
    MAX_EXTRA_BYTES,
    MIN_SERVED_OVER_HUGGING_FACE,
    MIN_SERVED_OVER_OFFLINE,
    Plan,
)
from benchmarks.session import Measured, model_and_format
from benchmarks.summary import Burst, Spread, Summary, count_equal, ratios, summarize
from benchmarks.workload import Load

NOISY_SHARE = 0.05
"""Share of the machine in other hands from which on a figure is marked."""


@dataclass(frozen=True, slots=True)
class Target:
    """One thing that was promised.

    Attributes:
        name: what it is about.
        wanted: in words.
        measured: in words, with the spread.
        is_met: whether the median keeps the promise.
    """

    name: str
    wanted: str
    measured: str
    is_met: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """One run.

    Attributes:
        environment: where and with what.
        model: name of the checkpoint.
        engine: that runs the built graphs.
        precision: of their weights.
        plan: what was measured.
        speed: of the machine.
        work: of the model.
        measured: with each of the plan's loads; memory with its `memory_load`.
        hugging_face: bursts of the plan's `hugging_face_load`.
        no_hugging_face: why there are none, empty when there are.
    """

    environment: Environment
    model: str
    engine: str
    precision: str
    plan: Plan
    speed: MachineSpeed
    work: ModelWork
    measured: Measured
    hugging_face: Sequence[Burst]
    no_hugging_face: str = ""

    @property
    def name(self) -> str:
        """What was measured, for file names."""
        return model_and_format(self.model, self.engine, self.precision)

    def rows(self) -> list[tuple[Load, Summary, Summary, Spread, Floor]]:
        """Per load: served, offline, served over offline in tokens/s, and the floor."""
        return [
            (load, summarize(served), summarize(offline), ratios(served, offline), self.floor(load))
            for load, served, offline in zip(
                self.plan.loads, self.measured.served, self.measured.offline, strict=True
            )
        ]

    def floor(self, load: Load) -> Floor:
        """The least time a load can take."""
        return floor_of(self.work, self.speed, load, self._num_prompt_tokens(load))

    def _num_prompt_tokens(self, load: Load) -> int:
        return max(r.num_prompt_tokens for r in self._served(load)[0].requests)

    def _served(self, load: Load) -> Sequence[Burst]:
        return self.measured.served[self.plan.loads.index(load)]

    def _offline(self, load: Load) -> Sequence[Burst]:
        return self.measured.offline[self.plan.loads.index(load)]

    # --- memory ---------------------------------------------------------------------------------

    @property
    def peak_memory_bytes(self) -> int:
        """Memory of all server processes, shared pages once."""
        return sum(self.measured.peak_memory.values())

    @property
    def weights_bytes(self) -> int:
        """Weights of both graphs, as they are built."""
        return self.work.decoder_bytes + self.work.vision_bytes

    @property
    def caches_bytes(self) -> int:
        """What the caches held at the end of the memory measurement, not what they could hold."""
        load = self.plan.memory_load
        num_tokens = self._num_prompt_tokens(load) + load.num_output_tokens
        num_image_tokens = load.num_pictures * self.work.tokens_per_picture
        return (
            load.concurrency * num_tokens * self.work.kv_bytes_per_token
            + num_image_tokens * self.work.embed_bytes_per_image_token
        )

    @property
    def extra_bytes(self) -> int:
        """Memory of the server beside weights and caches."""
        return self.peak_memory_bytes - self.weights_bytes - self.caches_bytes

    # --- answers --------------------------------------------------------------------------------

    def equal_served_answers(self) -> tuple[int, int]:
        """Served answers with exactly the offline engine's text, and all of them."""
        pairs = zip(self.measured.served, self.measured.offline, strict=True)
        counts = [
            count_equal(one.texts, other.texts)
            for served, offline in pairs
            for one, other in zip(served, offline, strict=True)
        ]
        return sum(equal for equal, _ in counts), sum(total for _, total in counts)

    def equal_hugging_face_answers(self) -> tuple[int, int]:
        """Offline answers with exactly Hugging Face's token ids, and those compared."""
        offline = self._offline(self.plan.hugging_face_load)
        counts = [
            count_equal(one.token_ids or (), other.token_ids or ())
            for one, other in zip(self.hugging_face, offline, strict=False)
        ]
        return sum(equal for equal, _ in counts), sum(total for _, total in counts)

    # --- promises -------------------------------------------------------------------------------

    def targets(self) -> list[Target]:
        """What was promised, and whether it holds; nothing of what was not measured.

        Equal answers are promised in fp32 only: fewer bits make others. Memory is promised on a CPU only.
        """
        load = self.plan.target_load
        over_offline = ratios(self._served(load), self._offline(load))
        targets = [
            Target(
                f"served / offline, tokens/s, {load.label}",
                f"at least {MIN_SERVED_OVER_OFFLINE:.2f}",
                in_words(over_offline) + _noise(self._served(load), self._offline(load)),
                over_offline.median >= MIN_SERVED_OVER_OFFLINE,
            )
        ]
        if self.hugging_face:
            reference = summarize(self.hugging_face).tokens_per_s.median
            over_reference = Spread.of([b.tokens_per_s / reference for b in self._served(load)])
            targets.append(
                Target(
                    f"served / Hugging Face generate, tokens/s, {load.label}",
                    f"at least {MIN_SERVED_OVER_HUGGING_FACE:.2f}",
                    in_words(over_reference) + _noise(self._served(load), self.hugging_face),
                    over_reference.median >= MIN_SERVED_OVER_HUGGING_FACE,
                )
            )
        if not self.speed.is_gpu:
            targets.append(
                Target(
                    f"memory of all server processes, {self.plan.memory_load.label}",
                    f"weights + caches + {MAX_EXTRA_BYTES / 1e9:.1f} GB",
                    f"weights + caches + {self.extra_bytes / 1e9:.2f} GB",
                    self.extra_bytes <= MAX_EXTRA_BYTES,
                )
            )
        if self.precision == "fp32":
            targets += [
                _equality("served text = offline text", *self.equal_served_answers()),
                _equality("offline tokens = Hugging Face", *self.equal_hugging_face_answers()),
            ]
        return targets

    def to_json(self) -> str:
        """Every timing and everything that follows; answers are left out, they are noise."""
        data: dict[str, Any] = asdict(self)
        both = data["measured"]
        for bursts in (*both["served"], *both["offline"], data["hugging_face"]):
            for burst in bursts:
                del burst["texts"], burst["token_ids"]
        data["summaries"] = {
            load.label: {
                "served": asdict(served),
                "offline": asdict(offline),
                "ratio": asdict(ratio),
            }
            for load, served, offline, ratio, _ in self.rows()
        }
        data["targets"] = [asdict(target) for target in self.targets()]
        data["weights_bytes"], data["caches_bytes"] = self.weights_bytes, self.caches_bytes
        return json.dumps(data, indent=1) + "\n"


def in_words(spread: Spread, digits: int = 2) -> str:
    """The median with smallest and largest repeat behind it."""
    return f"{spread.median:.{digits}f} ({spread.low:.{digits}f} to {spread.high:.{digits}f})"


def _noise(*engines: Sequence[Burst]) -> str:
    """A warning if other programs had a part in a figure."""
    share = max(burst.foreign_cpu_share for bursts in engines for burst in bursts)
    return f", not idle: others had {share:.0%}" if share > NOISY_SHARE else ""


def _equality(name: str, num_equal: int, num_compared: int) -> Target:
    return Target(
        name, "all", f"{num_equal} of {num_compared} answers", 0 < num_compared == num_equal
    )
