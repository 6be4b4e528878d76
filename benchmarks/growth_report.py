"""How cost grows, as a Markdown page."""

from __future__ import annotations

from pathlib import Path

from benchmarks.growth_results import Curve, GrowthResults, Point
from benchmarks.report import Rows, markdown_table
from benchmarks.results import NOISY_SHARE
from benchmarks.workload import NUM_TEXT_TOKENS, PICTURE_SIZE

_FIGURES = (("tokens/s", "ceiling"), ("TTFT p50 s", "floor"), ("TPOT p50 ms", "floor"))
_HEADER = (
    "prompt tokens",
    *(f"{figure}, {kind}" for figure, limit in _FIGURES for kind in ("served", "offline", limit)),
    "others' CPU",
)


def curve_rows(points: list[Point]) -> Rows:
    """One row per point."""
    rows: Rows = []
    for point in points:
        summaries = point.served, point.offline
        share = max(summary.foreign_cpu_share for summary in summaries)
        others = f"{share:.0%}"
        rows.append(
            (
                str(point.value),
                str(point.num_prompt_tokens),
                *(f"{summary.tokens_per_s.median:,.1f}" for summary in summaries),
                f"{point.floor.tokens_per_s:,.1f}",
                *(f"{summary.ttft_p50_s:.2f}" for summary in summaries),
                f"{point.floor.ttft_p50_s:.2f}",
                *(f"{summary.tpot_p50_s * 1e3:.1f}" for summary in summaries),
                f"{point.floor.tpot_s * 1e3:.1f}",
                f"**{others}**" if share > NOISY_SHARE else others,
            )
        )
    return rows


def to_markdown(results: GrowthResults, plot: Path) -> str:
    """The page; `plot` lies beside it."""
    environment = results.environment
    tables = [
        part
        for curve, points in zip(results.curves, results.points(), strict=True)
        for part in (f"## {curve.what.capitalize()}", _sentence(curve), _table(curve, points))
    ]
    num_repeats = len(results.measured.served[0])
    sections = [
        f"# How cost grows: {results.model}, {results.engine}, {results.precision}, {environment.slug}",
        f"`{environment.command}`",
        f"{environment.in_words}; figures during which others used more than {NOISY_SHARE:.0%} of it (bold) "
        "are worth little.",
        f"{environment.software}; manifest sha256 `{environment.manifest_sha256}`.",
        f"[What each figure means](../README.md#how-cost-grows). {num_repeats} burst per point. Greedy, "
        "end-of-sequence ignored, all requests of a burst at once.",
        f"The machine, measured in the same run: {results.speed.in_words}.",
        f"![Growth]({plot.name})",
        *tables,
    ]
    return "\n\n".join(sections) + "\n"


def _sentence(curve: Curve) -> str:
    load, size = curve.loads[-1], f"{PICTURE_SIZE} x {PICTURE_SIZE}"
    if load.has_picture:
        what = f"One request with {size} pictures and {NUM_TEXT_TOKENS} tokens of text"
    elif load.concurrency > 1:
        what = f"Requests with {NUM_TEXT_TOKENS} tokens of text"
    else:
        what = "One request"
    return f"{what}, {load.num_output_tokens} tokens out."


def _table(curve: Curve, points: list[Point]) -> str:
    return markdown_table((curve.what, *_HEADER), curve_rows(points))
