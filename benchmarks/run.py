"""The benchmark: makes and builds a checkpoint, measures every engine, writes a result.

python -m benchmarks.run            # the 0.5B-shaped checkpoint
python -m benchmarks.run --quick    # a tiny one: does everything work?
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.checkpoint import PRESETS, make_checkpoint
from benchmarks.environment import describe
from benchmarks.floors import MachineSpeed, SpeedTest, work_of
from benchmarks.hugging_face import HuggingFaceEngine
from benchmarks.offline import OfflineEngine
from benchmarks.plan import Plan, full_plan, quick_plan
from benchmarks.plot import draw
from benchmarks.report import print_tables, to_markdown
from benchmarks.result_files import write_files
from benchmarks.results import Results
from benchmarks.served import ServedEngine
from benchmarks.summary import Burst
from benchmarks.worker import Worker
from benchmarks.workload import Workload
from python_backend.manifest import ModelFolder
from triton_vlm.stack import ServingStack

_ROOT = Path(__file__).resolve().parent.parent
_FILE_WIDTH = 150
"""Characters of a line where there is no terminal."""
_WARM_UP = 1_000_000
"""Number of the burst that memory is measured on and that no time counts of."""


class Benchmark:
    """One run, step by step.

    Args:
        plan: what to measure.
        work_dir: keeps checkpoints and built models between runs.
        console: for progress.
    """

    def __init__(self, plan: Plan, work_dir: Path, console: Console) -> None:
        self._plan = plan
        self._work_dir = work_dir
        self._console = console
        self._repository = work_dir / "model_repository"
        self._preset = PRESETS[plan.preset]

    def run(self, command: str) -> Results:
        """Everything, in the order in which nothing disturbs anything else."""
        with self._step("Making the checkpoint"):
            checkpoint = make_checkpoint(self._preset, self._work_dir / "checkpoints")
        with self._step("Building it for Triton"):
            self._build(checkpoint)
        folder = self._repository / self._preset.name
        tokenizer = checkpoint / "tokenizer.json"
        environment = describe(folder, command)
        with self._step("Measuring the machine"), Worker(SpeedTest) as test:
            speed: MachineSpeed = test.call("run")
        peak, served, offline = self._measure_engines(folder, tokenizer)
        config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        return Results(
            environment=environment,
            model=self._preset.name,
            precision=ModelFolder.open(folder).manifest.precision,
            plan=self._plan,
            speed=speed,
            work=work_of(checkpoint, config),
            served=served,
            offline=offline,
            hugging_face=self._measure_hugging_face(checkpoint, folder, tokenizer),
            peak_memory=peak,
        )

    def _build(self, checkpoint: Path) -> None:
        # A program of its own: the memory that verification takes goes with it.
        arguments = ["--model", str(checkpoint), "--output", str(self._repository)]
        command = [sys.executable, "-m", "builders.build", *arguments]
        subprocess.run(command, cwd=_ROOT, check=True)

    def _measure_engines(
        self, folder: Path, tokenizer: Path
    ) -> tuple[dict[str, int], list[list[Burst]], list[list[Burst]]]:
        """Memory of the server, and the bursts of both engines, which take turns."""
        plan = self._plan
        bursts: tuple[list[list[Burst]], list[list[Burst]]] = (
            [[] for _ in plan.loads],
            [[] for _ in plan.loads],
        )
        stack = ServingStack(self._repository, self._preset.name, log_dir=self._work_dir / "logs")
        with self._step("Starting Triton and the proxy"):
            stack.start()
        try:
            server = ServedEngine(stack, Workload(tokenizer))
            # Before another process maps the same weights and takes its share of their pages.
            with self._step(f"Warming up and measuring memory: {plan.memory_load.label}"):
                peak = server.peak_memory(plan.memory_load, _WARM_UP)
            with Worker(OfflineEngine, folder, tokenizer) as engine, self._bars() as bars:
                task = bars.add_task("", total=2 * plan.repeats * len(plan.loads))
                engine.call("run", plan.loads[0], _WARM_UP)
                for repeat in range(plan.repeats):
                    for load, served, offline in zip(plan.loads, *bursts, strict=True):
                        bars.update(task, description=f"{load.label}, served")
                        served.append(server.run(load, repeat))
                        bars.update(task, description=f"{load.label}, offline", advance=1)
                        offline.append(engine.call("run", load, repeat))
                        bars.update(task, advance=1)
        finally:
            stack.stop()
        return peak, *bursts

    def _measure_hugging_face(self, checkpoint: Path, folder: Path, tokenizer: Path) -> list[Burst]:
        with (
            self._step("Loading Hugging Face"),
            Worker(HuggingFaceEngine, checkpoint, folder, tokenizer) as engine,
            self._bars() as bars,
        ):
            repeats = range(self._plan.hugging_face_repeats)
            return [
                engine.call("run", self._plan.hugging_face_load, repeat)
                for repeat in bars.track(repeats, description="Hugging Face generate")
            ]

    def _bars(self) -> Progress:
        # Few refreshes: this process's processor time is the machine's.
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            refresh_per_second=1,
        )

    @contextmanager
    def _step(self, title: str) -> Iterator[None]:
        """Say what is being done, and how long it took."""
        start = time.monotonic()
        self._console.print(f"{title} ...")
        yield
        self._console.print(f"  {time.monotonic() - start:.0f} s")


def write(results: Results, folder: Path) -> Path:
    """Write the page, every timing and the picture; returns the page."""
    return write_files(results, results.model, folder, to_markdown, draw)


def main(argv: Sequence[str]) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny checkpoint and short loads")
    parser.add_argument("--repeats", type=int, help="bursts per load (default: 3, quick: 2)")
    parser.add_argument(
        "--concurrencies",
        type=int,
        nargs="+",
        default=[1, 4, 8, 16],
        help="requests at once with pictures, not with --quick (default: 1 4 8 16)",
    )
    parser.add_argument(
        "--work-dir",
        type=Path,
        default=_ROOT / "build" / "benchmarks",
        help="keeps checkpoints and built models (default: build/benchmarks)",
    )
    parser.add_argument(
        "--results",
        type=Path,
        help="folder for the result (default: benchmarks/results, quick: the work folder)",
    )
    arguments = parser.parse_args(argv)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    quick, repeats = arguments.quick, arguments.repeats
    plan = quick_plan(repeats or 2) if quick else full_plan(repeats or 3, arguments.concurrencies)
    console = Console(stderr=True, highlight=False)
    command = " ".join(["python -m benchmarks.run", *argv])
    results = Benchmark(plan, arguments.work_dir, console).run(command)
    output = Console()
    print_tables(results, output if output.is_terminal else Console(width=_FILE_WIDTH))
    default = arguments.work_dir if quick else _ROOT / "benchmarks" / "results"
    console.print(f"written to {write(results, arguments.results or default)}", soft_wrap=True)


if __name__ == "__main__":
    main(sys.argv[1:])
