"""Speed over concurrency as a picture."""

from __future__ import annotations

from pathlib import Path

from benchmarks.results import Results
from benchmarks.summary import summarize

SERVED, OFFLINE, _REFERENCE, FLOOR = "#1f77b4", "#ff7f0e", "#555555", "#2ca02c"


def draw(results: Results, path: Path) -> None:
    """Draw tokens/s, TTFT and TPOT of the picture loads into a PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in results.rows() if row[0].has_picture]
    concurrencies = [load.concurrency for load, *_ in rows]
    figure, (speed, ttft, tpot) = pyplot.subplots(1, 3, figsize=(13, 4), layout="constrained")
    style: dict[str, str]
    for name, colour, summaries in (
        ("served", SERVED, [served for _, served, _, _, _ in rows]),
        ("offline", OFFLINE, [offline for _, _, offline, _, _ in rows]),
    ):
        spreads = [summary.tokens_per_s for summary in summaries]
        medians = [spread.median for spread in spreads]
        errors = [
            [spread.median - spread.low for spread in spreads],
            [spread.high - spread.median for spread in spreads],
        ]
        style = {"marker": "o", "color": colour, "label": name}
        speed.errorbar(concurrencies, medians, errors, capsize=4, **style)
        ttft.plot(concurrencies, [summary.ttft_p50_s for summary in summaries], **style)
        tpot.plot(concurrencies, [summary.tpot_p50_s * 1e3 for summary in summaries], **style)
    floors = [floor for _, _, _, _, floor in rows]
    style = {"linestyle": ":", "color": FLOOR, "label": "floor of the machine"}
    speed.plot(concurrencies, [floor.tokens_per_s for floor in floors], **style)
    tpot.plot(concurrencies, [floor.tpot_s * 1e3 for floor in floors], **style)
    if results.hugging_face:
        reference = summarize(results.hugging_face)
        style = {"linestyle": "--", "color": _REFERENCE, "label": "Hugging Face, one by one"}
        speed.axhline(reference.tokens_per_s.median, **style)
    for axes, title in ((speed, "output tokens/s"), (ttft, "TTFT p50, s"), (tpot, "TPOT p50, ms")):
        axes.set_title(title)
        axes.set_xlabel("requests at once")
        axes.set_xticks(concurrencies)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(f"{results.model}, {results.precision}, {results.environment.slug}")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
