"""How cost grows: with requests at once, with the length of the prompt, with pictures per request.

python -m benchmarks.growth            # the 0.5B-shaped checkpoint: 9 minutes on two cores
python -m benchmarks.growth --quick    # the default model: does everything work?
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from benchmarks.command_line import (
    CommandLine,
    add_engine,
    add_quick,
    add_results,
    engine_of,
    results_dir,
)
from benchmarks.growth_plot import draw
from benchmarks.growth_report import to_markdown
from benchmarks.growth_results import Curve, GrowthResults
from benchmarks.result_files import write_files
from benchmarks.session import Session, Subject
from benchmarks.workload import Load, text_load
from python_backend.errors import BundleError

_MAX_SEQS = 64
_ROOM = 256
"""Tokens that the longest prompt has beside its text: the chat template's, and the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """Where the curves are measured.

    Attributes:
        concurrencies: requests at once, each with 64 tokens of text.
        prompt_lengths: tokens of text of one request.
        picture_counts: pictures of one request.
        num_output_tokens: of each request of the first curve; the others have half as many.
    """

    concurrencies: tuple[int, ...]
    prompt_lengths: tuple[int, ...]
    picture_counts: tuple[int, ...]
    num_output_tokens: int

    @property
    def curves(self) -> tuple[Curve, ...]:
        """What is measured."""
        few = self.num_output_tokens // 2
        return (
            Curve(
                "requests at once",
                self.concurrencies,
                tuple(map(self._requests, self.concurrencies)),
            ),
            Curve(
                "tokens of text in the prompt",
                self.prompt_lengths,
                tuple(_alone(f"prompt {n}", few, num_text_tokens=n) for n in self.prompt_lengths),
            ),
            Curve(
                "pictures in the request",
                self.picture_counts,
                tuple(
                    _alone(f"pictures {n}", few, num_pictures_each=n) for n in self.picture_counts
                ),
            ),
        )

    def _requests(self, concurrency: int) -> Load:
        return text_load(concurrency, self.num_output_tokens)


def _alone(name: str, num_output_tokens: int, **what: Any) -> Load:
    return Load(name=name, concurrency=1, num_output_tokens=num_output_tokens, **what)


FULL = Points(
    concurrencies=(1, 2, 4, 8, 16, 32, 64),
    prompt_lengths=(64, 256, 1024, 4096, 8192),
    picture_counts=(1, 2, 4, 8, 16),
    num_output_tokens=16,
)
QUICK = Points(
    concurrencies=(1, 8, 64),
    prompt_lengths=(64, 256, 1024),
    picture_counts=(1, 4, 16),
    num_output_tokens=8,
)


def measure(session: Session, curves: Sequence[Curve], repeats: int, command: str) -> GrowthResults:
    """All curves, served and offline in turn."""
    session.prepare()
    environment = session.describe(command)
    speed = session.speed()
    loads = [load for curve in curves for load in curve.loads]
    return GrowthResults(
        environment=environment,
        model=session.name,
        engine=session.subject.engine,
        precision=session.subject.precision,
        speed=speed,
        work=session.work(),
        curves=curves,
        measured=session.measure(loads, repeats, loads[0]),
    )


def main(argv: Sequence[str]) -> None:
    """Run the benchmark."""
    line = CommandLine("benchmarks.growth", __doc__)
    parser = line.parser("checkpoints and built models")
    add_quick(parser, "the default model and shorter prompts")
    add_engine(parser)
    add_results(parser)
    parser.add_argument("--repeats", type=int, default=1, help="bursts per load (default: 1)")
    arguments = parser.parse_args(argv)
    console, command = line.start(argv)
    points = QUICK if arguments.quick else FULL
    subject = Subject(
        preset=None if arguments.quick else "05b",
        max_seqs=_MAX_SEQS,
        max_model_len=max(points.prompt_lengths) + _ROOM,
        **engine_of(arguments),
    )
    try:
        session = Session(subject, arguments.work_dir, console)
    except BundleError as error:
        sys.exit(error.message)
    results = measure(session, points.curves, arguments.repeats, command)
    page = write_files(results, results.name, results_dir(arguments), to_markdown, draw)
    Console().print(page.read_text(encoding="utf-8"), soft_wrap=True, markup=False, highlight=False)
    console.print(f"written to {page}")


if __name__ == "__main__":
    main(sys.argv[1:])
