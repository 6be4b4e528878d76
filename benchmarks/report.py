"""A run as a Markdown page and as tables in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.results import NOISY_SHARE, Results, in_words
from benchmarks.summary import Summary, summarize
from benchmarks.workload import NUM_TEXT_TOKENS, PICTURE_SIZE, Load

_SPEED_HEADER = (
    *("load", "engine", "tokens/s", "TTFT p50 / p99 s", "TPOT p50 / p99 ms", "burst s"),
    *("CPU s per request", "others' CPU"),
)
_FLOOR_HEADER = (
    *("load", "TTFT floor s", "TPOT floor ms", "tokens/s ceiling", "served", "offline"),
    "served TPOT",
)
_MEMORY_HEADER = ("what", "GB")
_TARGET_HEADER = ("target", "wanted", "measured", "met")

Rows = list[tuple[str, ...]]


def speed_rows(results: Results) -> Rows:
    """One row per load and engine, and Hugging Face at the end."""
    rows: Rows = []
    for load, served, offline, _, _ in results.rows():
        rows += [_speed_row(load.label, "served", served), _speed_row("", "offline", offline)]
    if not results.hugging_face:
        return rows
    reference = summarize(results.hugging_face)
    label = f"{results.plan.hugging_face_load.label}, one by one"
    return [*rows, _speed_row(label, "Hugging Face", reference)]


def _speed_row(label: str, engine: str, summary: Summary) -> tuple[str, ...]:
    others = f"{summary.foreign_cpu_share:.0%}"
    return (
        label,
        engine,
        in_words(summary.tokens_per_s),
        f"{summary.ttft_p50_s:.2f} / {summary.ttft_p99_s:.2f}",
        f"{summary.tpot_p50_s * 1e3:.1f} / {summary.tpot_p99_s * 1e3:.1f}",
        in_words(summary.wall_s, 1),
        in_words(summary.cpu_s_per_request),
        f"**{others}**" if summary.foreign_cpu_share > NOISY_SHARE else others,
    )


def floor_rows(results: Results) -> Rows:
    """One row per load: what is possible, and how much of it was reached."""
    rows: Rows = []
    for load, served, offline, _, floor in results.rows():
        served_share = served.tokens_per_s.median / floor.tokens_per_s
        offline_share = offline.tokens_per_s.median / floor.tokens_per_s
        # With other requests' prompts in between, the time per token has no simple floor.
        is_pure = load.concurrency == 1 or not load.has_picture
        rows.append(
            (
                load.label,
                f"{floor.ttft_s:.2f}",
                f"{floor.tpot_s * 1e3:.1f}",
                f"{floor.tokens_per_s:.1f}",
                f"{served_share:.0%}",
                f"{offline_share:.0%}",
                f"{floor.tpot_s / served.tpot_p50_s:.0%}" if is_pure else "-",
            )
        )
    return rows


def target_rows(results: Results) -> Rows:
    """One row per target."""
    return [
        (target.name, target.wanted, target.measured, "met" if target.is_met else "NOT MET")
        for target in results.targets()
    ]


def memory_rows(results: Results) -> Rows:
    """The server's memory: by process, and by what it is for."""
    sizes = {
        **dict(sorted(results.measured.peak_memory.items(), key=lambda item: -item[1])),
        "all processes": results.peak_memory_bytes,
    }
    of_which = {
        f"of which weights, {results.precision}": results.weights_bytes,
        "of which caches in use": results.caches_bytes,
    }
    if results.measured.gpu_bytes is not None:
        sizes |= {"on the GPU": results.measured.gpu_bytes, **of_which}
    elif not results.speed.is_gpu:
        sizes |= {**of_which, "beside weights and caches": results.extra_bytes}
    return [(name, f"{num_bytes / 1e9:.2f}") for name, num_bytes in sizes.items()]


def to_markdown(results: Results, plot: Path) -> str:
    """The page; `plot` lies beside it."""
    environment, work, speed = results.environment, results.work, results.speed
    loads = results.plan.loads
    sections = [
        f"# {results.model}, {results.engine}, {results.precision}, {environment.slug}",
        f"`{environment.command}`",
        f"{environment.in_words}; the last "
        "column of the first table is what other programs used meanwhile, and figures of bursts "
        f"with more than {NOISY_SHARE:.0%} (bold) are worth little.",
        f"{environment.software}; manifest sha256 `{environment.manifest_sha256}`.",
        "[What each figure means](../README.md). Figures are medians with the smallest and largest "
        f"repeat ({results.plan.repeats} in all); percentiles are over all requests of all repeats. "
        f"Prompts: {NUM_TEXT_TOKENS} tokens of text, with one picture of {PICTURE_SIZE} x "
        f"{PICTURE_SIZE} for `picture`; "
        f"{_answers(loads)} Greedy, end-of-sequence ignored, all requests of a burst at once.",
        "## Targets",
        markdown_table(_TARGET_HEADER, target_rows(results)),
        "## Speed",
        markdown_table(_SPEED_HEADER, speed_rows(results)),
        f"![Speed over concurrency]({plot.name})",
        _hugging_face(results),
        "## Floors",
        f"Measured in the same run: {speed.in_words}. A decode step reads "
        f"{work.decoder_bytes / 1e9:.2f} GB of weights.",
        markdown_table(_FLOOR_HEADER, floor_rows(results)),
        "The last three columns are shares of the floor: 100% cannot be beaten.",
        "## Memory",
        f"{results.plan.memory_load.label}, all server processes, shared pages counted once.",
        markdown_table(_MEMORY_HEADER, memory_rows(results)),
    ]
    return "\n\n".join(sections) + "\n"


def _hugging_face(results: Results) -> str:
    """What was measured of it, or why nothing was."""
    if not results.hugging_face:
        return f"Hugging Face is left out: {results.no_hugging_face}."
    num_equal, num_compared = results.equal_hugging_face_answers()
    return (
        "Hugging Face takes requests one after another, so its tokens/s are taken to be the same "
        f"for any number of them; they were measured on {len(results.hugging_face)}. "
        f"Of the offline engine's answers {num_equal} of {num_compared} have exactly its tokens."
    )


def _answers(loads: Sequence[Load]) -> str:
    lengths = {(load.name, load.num_output_tokens) for load in loads}
    return ", ".join(f"{number} tokens out for `{name}`" for name, number in sorted(lengths)) + "."


def markdown_table(header: Sequence[str], rows: Rows) -> str:
    """A table in GitHub's Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def print_tables(results: Results, console: Console) -> None:
    """The same tables, for the person who waits."""
    for title, header, rows in (
        ("Speed", _SPEED_HEADER, speed_rows(results)),
        ("Floors", _FLOOR_HEADER, floor_rows(results)),
        ("Memory", _MEMORY_HEADER, memory_rows(results)),
        ("Targets", _TARGET_HEADER, target_rows(results)),
    ):
        table = Table(*header, title=title, title_justify="left")
        for row in rows:
            table.add_row(*row)
        console.print(table)
