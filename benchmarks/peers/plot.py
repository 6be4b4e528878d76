"""Speed of all engines over concurrency as a picture."""

from __future__ import annotations

from pathlib import Path

from benchmarks.peers.metrics import TOKENS_PER_S, TPOT_P50, TTFT_P50
from benchmarks.peers.results import PeerResults


def draw(results: PeerResults, path: Path) -> None:
    """Draw tokens/s, TTFT and TPOT of the picture loads into a PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    loads = [load for load in results.plan.plain_loads if load.has_picture and not load.mean_gap_s]
    figure, plots = pyplot.subplots(1, 3, figsize=(14, 4.5), layout="constrained")
    plots[0].plot(
        [load.concurrency for load in loads],
        [results.floor(load).tokens_per_s for load in loads],
        linestyle=":",
        color="black",
        label="floor of the machine",
    )
    for axes, metric in zip(plots, (TOKENS_PER_S, TTFT_P50, TPOT_P50), strict=True):
        for engine in results.engines:
            measured = [load for load in loads if load.label in engine.bursts]
            spreads = [metric.spread(engine.bursts[load.label]) for load in measured]
            errors = [
                [spread.median - spread.low for spread in spreads],
                [spread.high - spread.median for spread in spreads],
            ]
            axes.errorbar(
                [load.concurrency for load in measured],
                [spread.median for spread in spreads],
                errors,
                capsize=3,
                marker="o",
                linestyle="-" if engine.is_served else "--",
                linewidth=2.5 if engine.is_ours else 1.2,
                label=engine.name,
            )
        axes.set_title(metric.name)
        axes.set_xlabel("requests at once")
        axes.set_xticks([load.concurrency for load in loads])
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    plots[0].legend()
    figure.suptitle(f"{results.model}, {results.plan.precision}, {results.environment.slug}")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
