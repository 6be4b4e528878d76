"""The benchmark: makes and builds a checkpoint, measures every engine, writes a result.

python -m benchmarks.run                                          # the 0.5B-shaped checkpoint
python -m benchmarks.run --quick                                  # a tiny one: does everything work?
python -m benchmarks.run --engine tensorrt --precision bf16       # on this machine's GPU
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.command_line import (
    CommandLine,
    add_engine,
    add_quick,
    add_results,
    engine_of,
    results_dir,
)
from benchmarks.hugging_face import HuggingFaceEngine, why_no_cuda
from benchmarks.plan import Plan, full_plan, quick_plan
from benchmarks.plot import draw
from benchmarks.report import print_tables, to_markdown
from benchmarks.result_files import write_files
from benchmarks.results import Results
from benchmarks.session import Session, Subject
from benchmarks.summary import Burst
from benchmarks.worker import Worker
from python_backend.errors import BundleError

_FILE_WIDTH = 150
"""Characters of a line where there is no terminal."""


def measure(session: Session, plan: Plan, command: str) -> Results:
    """Everything, in the order in which nothing disturbs anything else."""
    session.prepare()
    environment = session.describe(command)
    speed = session.speed()
    measured = session.measure(plan.loads, plan.repeats, plan.memory_load)
    reason = why_no_cuda() if session.subject.is_gpu else ""
    return Results(
        environment=environment,
        model=session.name,
        engine=session.subject.engine,
        precision=session.subject.precision,
        plan=plan,
        speed=speed,
        work=session.work(),
        measured=measured,
        hugging_face=() if reason else _ask_hugging_face(session, plan),
        no_hugging_face=reason,
    )


def _ask_hugging_face(session: Session, plan: Plan) -> list[Burst]:
    folders = session.checkpoint, session.folder, session.tokenizer
    device = "cuda" if session.subject.is_gpu else "cpu"
    with (
        session.step("Loading Hugging Face"),
        Worker(HuggingFaceEngine, *folders, device) as engine,
        session.bars() as bars,
    ):
        repeats = range(plan.hugging_face_repeats)
        return [
            engine.call("run", plan.hugging_face_load, repeat)
            for repeat in bars.track(repeats, description="Hugging Face generate")
        ]


def write(results: Results, folder: Path) -> Path:
    """Write the page, every timing and the picture; returns the page."""
    return write_files(results, results.name, folder, to_markdown, draw)


def main(argv: Sequence[str]) -> None:
    """Run the benchmark."""
    line = CommandLine("benchmarks.run", __doc__)
    parser = line.parser("checkpoints and built models")
    add_quick(parser, "a tiny checkpoint and short loads")
    add_engine(parser)
    add_results(parser)
    parser.add_argument("--repeats", type=int, help="bursts per load (default: 3, quick: 2)")
    parser.add_argument(
        "--concurrencies",
        type=int,
        nargs="+",
        default=[1, 4, 8, 16],
        help="requests at once with pictures, not with --quick (default: 1 4 8 16)",
    )
    arguments = parser.parse_args(argv)
    quick, repeats = arguments.quick, arguments.repeats
    plan = quick_plan(repeats or 2) if quick else full_plan(repeats or 3, arguments.concurrencies)
    console, command = line.start(argv)
    subject = Subject(preset=plan.preset, **engine_of(arguments))
    try:
        session = Session(subject, arguments.work_dir, console)
    except BundleError as error:
        sys.exit(error.message)
    results = measure(session, plan, command)
    output = Console()
    print_tables(results, output if output.is_terminal else Console(width=_FILE_WIDTH))
    console.print(f"written to {write(results, results_dir(arguments))}")


if __name__ == "__main__":
    main(sys.argv[1:])
