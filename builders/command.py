"""The command line of the builder: parse, build with a progress bar, print a summary."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from builders.options import BuildOptions
from builders.precision import GROUP_SIZES, PRECISIONS
from python_backend.errors import VlmError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="triton-vlm build",
        description="Turn a Hugging Face checkpoint into a Triton model repository.",
    )
    parser.add_argument("--model", required=True, help="checkpoint folder, or a hub id")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("model_repository"),
        help="model repository (%(default)s)",
    )
    parser.add_argument("--name", help="Triton model name (default: last part of the model)")
    parser.add_argument(
        "--engine",
        choices=list(PRECISIONS),
        default="onnxruntime",
        help="onnxruntime for the CPU, tensorrt for this machine's GPU, tensorrt_rtx for any (%(default)s)",
    )
    parser.add_argument(
        "--precision",
        default="",
        help="weights: "
        + "; ".join(f"{engine}: {', '.join(names)}" for engine, names in PRECISIONS.items())
        + " (the first)",
    )
    parser.add_argument(
        "--group-size",
        type=int,
        choices=GROUP_SIZES,
        help="weights that share a scale in int4: the larger, the faster and the less exact "
        f"(default: {GROUP_SIZES[0]})",
    )
    parser.add_argument(
        "--gpu",
        dest="gpus",
        type=lambda text: tuple(text.lower().split(",")),
        default=(),
        help="compute capabilities for tensorrt_rtx, such as sm89,sm120",
    )
    parser.add_argument(
        "--max-seqs", type=int, default=16, help="answers generated at once (%(default)s)"
    )
    parser.add_argument(
        "--max-model-len",
        type=int,
        help="context per request in tokens (default: the checkpoint's, at most 4096)",
    )
    parser.add_argument(
        "--max-images", type=int, default=16, help="images per prompt (%(default)s)"
    )
    parser.add_argument(
        "--skip-verify",
        action="store_true",
        help="do not compare with a reference; serving then needs unverified models to be allowed",
    )
    return parser


class _ConsoleReport:
    """Shows stages, bytes written and notes."""

    def __init__(self, console: Console, bars: Progress) -> None:
        self._console, self._bars = console, bars
        self._task = bars.add_task("", total=None, visible=False)
        self._title = ""

    def stage(self, title: str) -> None:
        self._bars.reset(self._task, description=title, total=None, visible=True)
        if not self._console.is_terminal and title != self._title:
            self._console.print(f"{title} ...")
        self._title = title

    def progress(self, what: str, done: int, total: int) -> None:
        self._bars.update(self._task, completed=done, total=total)

    def note(self, text: str) -> None:
        self._console.print(f"  {text}")


def main(argv: Sequence[str]) -> int:
    """Run the builder; the exit status is 0, or 1 after one sentence on what is wrong."""
    arguments = vars(_parser().parse_args(argv))
    # Not wanted in the output of a builder: adverts for torch, and bars of other libraries.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    console = Console(stderr=True, highlight=False)
    start = time.monotonic()
    try:
        options = BuildOptions(**arguments)
        from builders.pipeline import build  # imports transformers: only when there is work

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=console, transient=True) as bars:
            model, results = build(options, _ConsoleReport(console, bars))
    except VlmError as error:
        console.print(f"[red]error:[/red] {error.message}", soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("stopped; the repository is as it was")
        return 130
    if results:
        table = Table("case", "image embeddings", "logits", "equal greedy tokens")
        for r in results:
            tokens = f"{r.num_equal_tokens}/{r.num_tokens}"
            table.add_row(r.name, f"{r.embeds_error:.1e}", f"{r.logits_error:.1e}", tokens)
        console.print("relative error against", model.manifest.verification["reference"])
        console.print(table)
    elif not model.manifest.verification:
        console.print("[yellow]not verified[/yellow]: it is served only where that is allowed")
    console.print(f"{model.folder} is ready ({time.monotonic() - start:.1f} s)")
    return 0
