"""How cost grows, as a picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.growth_results import GrowthResults
from benchmarks.plot import FLOOR, OFFLINE, SERVED
from benchmarks.summary import Summary

_FIGURES: tuple[tuple[str, Callable[[Summary], float], Callable[[Any], float]], ...] = (
    ("output tokens/s", lambda s: s.tokens_per_s.median, lambda floor: floor.tokens_per_s),
    ("TTFT p50, s", lambda s: s.ttft_p50_s, lambda floor: floor.ttft_p50_s),
    ("TPOT p50, ms", lambda s: s.tpot_p50_s * 1e3, lambda floor: floor.tpot_s * 1e3),
)


def draw(results: GrowthResults, path: Path) -> None:
    """Draw every figure of every curve into a PNG, both axes logarithmic: a straight line is a power."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    curves = list(zip(results.curves, results.points(), strict=True))
    figure, rows = pyplot.subplots(
        len(_FIGURES), len(curves), figsize=(13, 10), layout="constrained"
    )
    for (name, of, of_floor), row in zip(_FIGURES, rows, strict=True):
        for (curve, points), axes in zip(curves, row, strict=True):
            for line, colour, style, values in (
                ("served", SERVED, "o-", [of(point.served) for point in points]),
                ("offline", OFFLINE, "o--", [of(point.offline) for point in points]),
                ("floor of the machine", FLOOR, ":", [of_floor(point.floor) for point in points]),
            ):
                axes.loglog(curve.values, values, style, color=colour, label=line)
            axes.set_title(name)
            axes.set_xlabel(curve.what)
            axes.set_xticks(curve.values, [str(value) for value in curve.values])
            axes.xaxis.minorticks_off()
            axes.grid(alpha=0.3)
    rows[0][0].legend()
    figure.suptitle(f"{results.model}, {results.precision}, {results.environment.slug}")
    figure.savefig(path, dpi=90)
    pyplot.close(figure)
