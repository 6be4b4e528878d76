"""What `benchmarks.growth` has measured, and the floors beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.environment import Environment
from benchmarks.floors import Floor, MachineSpeed, ModelWork, floor_of
from benchmarks.session import Measured, model_and_format
from benchmarks.summary import Summary, summarize
from benchmarks.workload import Load


@dataclass(frozen=True, slots=True)
class Curve:
    """Loads that differ in one number.

    Attributes:
        what: the number.
        values: of it.
        loads: one for each value.
    """

    what: str
    values: tuple[int, ...]
    loads: tuple[Load, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One load of a curve.

    Attributes:
        value: of the number that grows.
        num_prompt_tokens: of a request, image tokens included.
        served: figures of the stack.
        offline: figures of the same engine in one process.
        floor: the least time that the machine allows.
    """

    value: int
    num_prompt_tokens: int
    served: Summary
    offline: Summary
    floor: Floor


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowthResults:
    """One run.

    Attributes:
        environment: where and with what.
        model: name of the checkpoint.
        engine: that runs the built graphs.
        precision: of their weights.
        speed: of the machine.
        work: of the model.
        curves: what was measured.
        measured: bursts of the loads of all curves, one curve after another.
    """

    environment: Environment
    model: str
    engine: str
    precision: str
    speed: MachineSpeed
    work: ModelWork
    curves: Sequence[Curve]
    measured: Measured

    @property
    def name(self) -> str:
        """What was measured, for file names."""
        return f"growth_{model_and_format(self.model, self.engine, self.precision)}"

    def points(self) -> list[list[Point]]:
        """Those of each curve."""
        bursts = zip(self.measured.served, self.measured.offline, strict=True)
        return [
            [
                self._point(*point, *next(bursts))
                for point in zip(curve.values, curve.loads, strict=True)
            ]
            for curve in self.curves
        ]

    def _point(self, value: int, load: Load, served: Any, offline: Any) -> Point:
        num_tokens = max(request.num_prompt_tokens for request in served[0].requests)
        return Point(
            value=value,
            num_prompt_tokens=num_tokens,
            served=summarize(served),
            offline=summarize(offline),
            floor=floor_of(self.work, self.speed, load, num_tokens),
        )

    def to_json(self) -> str:
        """Every timing and everything that follows; answers are left out, they are noise."""
        data: dict[str, Any] = asdict(self)
        for bursts in (*data["measured"]["served"], *data["measured"]["offline"]):
            for burst in bursts:
                del burst["texts"], burst["token_ids"]
        for curve, points in zip(data["curves"], self.points(), strict=True):
            curve["points"] = [asdict(point) for point in points]
        return json.dumps(data, indent=1) + "\n"
