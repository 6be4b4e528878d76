"""What a comparison has measured so far, answers included: it takes hours, and may be interrupted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pydantic import TypeAdapter

from benchmarks.peers.plan import PeerPlan
from benchmarks.peers.results import PeerResults

_RESULTS = TypeAdapter(PeerResults)


class Unfinished:
    """The file of a comparison that has not come to its end.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def save(self, results: PeerResults) -> None:
        """Keep everything that was measured."""
        self._path.write_bytes(_RESULTS.dump_json(results))

    def load(self, plan: PeerPlan) -> PeerResults:
        """What was kept, without engines in which something failed: they get another try.

        Args:
            plan: of the run that goes on. Arrivals are those of the run that was interrupted.

        Raises:
            SystemExit: there is nothing, or it was another run's.
        """
        if not self._path.exists():
            raise SystemExit("no run was interrupted here: leave --resume out")
        results = _RESULTS.validate_json(self._path.read_bytes())
        if _without_arrivals(results.plan) != _without_arrivals(plan):
            raise SystemExit(
                "the run that was interrupted measured something else: give its options, or leave out "
                "--resume"
            )
        results.engines[:] = [engine for engine in results.engines if engine.failure is None]
        return results

    def delete(self) -> None:
        """The comparison is finished."""
        self._path.unlink(missing_ok=True)


def _without_arrivals(plan: PeerPlan) -> PeerPlan:
    """Times between arrivals follow from the machine's speed, which no two runs find alike."""
    return replace(plan, loads=tuple(replace(load, mean_gap_s=0.0) for load in plan.loads))
