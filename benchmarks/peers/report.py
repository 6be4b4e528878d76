"""A comparison as a Markdown page."""

from __future__ import annotations

from pathlib import Path

from benchmarks.peers.metrics import METRICS, again_over_first, ratio
from benchmarks.peers.results import PeerResults
from benchmarks.report import Rows, markdown_table
from benchmarks.results import NOISY_SHARE, in_words
from benchmarks.summary import Spread
from benchmarks.workload import NUM_SYSTEM_TOKENS, NUM_TEXT_TOKENS, PICTURE_SIZE, Load

_METRIC_NAMES = tuple(metric.name for metric in METRICS)


def engine_rows(results: PeerResults) -> Rows:
    """One row per engine: what it is and what it costs."""
    return [
        (
            engine.name,
            engine.version,
            "HTTP" if engine.is_served else "in process",
            "-" if engine.cold_start_s is None else f"{engine.cold_start_s:.1f}",
            "-" if engine.peak_bytes is None else f"{engine.peak_bytes / 1e9:.2f}",
            _answers(*results.all_equal_answers(engine)),
            engine.failure or "",
        )
        for engine in results.engines
    ]


def speed_rows(results: PeerResults, load: Load) -> Rows:
    """One row per engine: its figures with one load."""
    rows: Rows = []
    for engine in results.engines:
        if bursts := engine.bursts.get(load.label):
            share = max(burst.foreign_cpu_share for burst in bursts)
            others = f"**{share:.0%}**" if share > NOISY_SHARE else f"{share:.0%}"
            figures = [in_words(metric.spread(bursts), metric.digits) for metric in METRICS]
            answers = _answers(*results.equal_answers(engine, load))
            rows.append((engine.name, *figures, answers, others))
    return rows


def _answers(num_equal: int, num_compared: int, share: float) -> str:
    if not num_compared:
        return "-"
    words = f"{num_equal} of {num_compared}"
    return words if num_equal == num_compared else f"{words}, {share:.0%} before a difference"


def floor_row(results: PeerResults, load: Load) -> str:
    """The floor of a load in a sentence."""
    floor = results.floor(load)
    return (
        f"Floor: TTFT {floor.ttft_s:.2f} s of one prompt alone, TPOT {floor.tpot_s * 1e3:.1f} ms, "
        f"{floor.tokens_per_s:.1f} tokens/s."
    )


def ratio_rows(results: PeerResults, *, is_served: bool) -> Rows:
    """One row per load and peer: the project's figures over the peer's."""
    ours = results.ours(is_served=is_served)
    if ours is None:
        return []
    rows: Rows = []
    for load in results.plan.loads:
        for peer in results.peers(is_served=is_served):
            if load.label in ours.bursts.keys() & peer.bursts.keys():
                pairs = [
                    [metric.spread(engine.bursts[load.label]) for engine in (ours, peer)]
                    for metric in METRICS
                ]
                rows.append((load.label, peer.name, *(in_words(ratio(*pair)) for pair in pairs)))
    return rows


def cache_rows(results: PeerResults) -> Rows:
    """One row per load and engine: how much sooner the first token comes the next time."""
    rows: Rows = []
    for load in results.plan.cached_loads:
        for engine in results.engines:
            bursts = engine.bursts.get(load.label)
            if bursts and load.concurrency == 1:
                first = Spread.of([burst.requests[0].ttft_s for burst in bursts])
                again = Spread.of([again_over_first(burst) for burst in bursts])
                rows.append((load.label, engine.name, in_words(first), in_words(again)))
    return rows


def to_markdown(results: PeerResults, plot: Path) -> str:
    """The page; `plot` lies beside it."""
    environment, plan = results.environment, results.plan
    reads = [speed.read_bytes_per_s / 1e9 for speed in results.speeds]
    flops = [speed.flops_per_s / 1e9 for speed in results.speeds]
    targets = [
        (t.name, t.wanted, t.measured, "met" if t.is_met else "NOT MET") for t in results.targets()
    ]
    sections = [
        f"# {results.model}, {plan.precision}, against peers, {environment.slug}",
        f"`{environment.command}`",
        f"{environment.in_words}; figures during "
        f"which others used more than {NOISY_SHARE:.0%} (bold) are worth little.{_resumed(results)}",
        f"{environment.software}.",
        "[What each figure means](../README.md#against-peers). Figures are medians with the smallest and "
        f"largest repeat ({plan.repeats} in all). Prompts: {NUM_TEXT_TOKENS} tokens of text, with a "
        f"{PICTURE_SIZE} x {PICTURE_SIZE} picture except for `decode`, `text` and `system prompt` "
        f"(which has {NUM_SYSTEM_TOKENS} tokens). Greedy, end-of-sequence ignored.",
        "## Targets",
        markdown_table(("target", "wanted", "measured", "met"), targets),
        "## Engines",
        markdown_table(
            (
                *("engine", "version", "asked", "cold start s", "memory GB"),
                *("= Hugging Face", "missing because"),
            ),
            engine_rows(results),
        ),
        f"![Speed over concurrency]({plot.name})",
        "## Ratios, served",
        "This project's figure over the peer's.",
        markdown_table(("load", "peer", *_METRIC_NAMES), ratio_rows(results, is_served=True)),
        "## Ratios, in process",
        markdown_table(("load", "peer", *_METRIC_NAMES), ratio_rows(results, is_served=False)),
        "## Caches",
        markdown_table(("load", "engine", "first TTFT s", "again / first"), cache_rows(results)),
        "## Figures",
        f"The machine, measured before each engine: {_range(reads, 1)} GB/s of memory reads, "
        f"{_range(flops, 0)} GFLOP/s of fp32 matrix products. A decode step reads "
        f"{results.work.decoder_bytes / 1e9:.2f} GB of weights.",
    ]
    header = ("engine", *_METRIC_NAMES, "= Hugging Face", "others' CPU")
    for load in plan.loads:
        sections += [f"### {load.label}, {load.num_output_tokens} tokens out"]
        if load.shared is None and not load.mean_gap_s:
            sections.append(floor_row(results, load))
        if load.mean_gap_s:
            sections.append(f"A request every {load.mean_gap_s:.2f} s in the mean.")
        sections.append(markdown_table(header, speed_rows(results, load)))
    return "\n\n".join(sections) + "\n"


def _resumed(results: PeerResults) -> str:
    times = ", ".join(results.resumed)
    return f" Interrupted, and resumed {times}." if times else ""


def _range(values: list[float], digits: int) -> str:
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"
