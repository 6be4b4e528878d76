"""What the command lines of the benchmarks have in common: folders, `--quick`, engine, and the result."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from builders.precision import PRECISIONS

ROOT = Path(__file__).resolve().parent.parent
WORK_DIR = Path("build") / "benchmarks"
RESULTS_DIR = Path("benchmarks") / "results"


@dataclass(frozen=True, slots=True)
class CommandLine:
    """One benchmark's.

    Attributes:
        module: as in `python -m <module>`.
        description: its first lines of help.
        work_dir: default of `--work-dir`, in this checkout.
    """

    module: str
    description: str | None
    work_dir: Path = WORK_DIR

    def parser(self, keeps: str) -> argparse.ArgumentParser:
        """A parser that knows `--work-dir` already.

        Args:
            keeps: what the folder keeps between runs, for the help.
        """
        parser = argparse.ArgumentParser(
            prog=f"python -m {self.module}",
            description=self.description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument(
            "--work-dir",
            type=lambda text: Path(text).resolve(),  # servers and converters are told the path
            default=ROOT / self.work_dir,
            help=f"keeps {keeps} (default: {self.work_dir})",
        )
        return parser

    def start(self, argv: Sequence[str]) -> tuple[Console, str]:
        """Quieten what libraries say to a terminal.

        Returns:
            The console for progress, and the whole command line for the result.
        """
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        return console, " ".join([f"python -m {self.module}", *argv])


def add_quick(parser: argparse.ArgumentParser, what: str) -> None:
    """Let a benchmark be tried out.

    Args:
        parser: gets `--quick`.
        what: is measured instead.
    """
    parser.add_argument("--quick", action="store_true", help=f"{what}: does everything work?")


def add_results(parser: argparse.ArgumentParser, *, has_quick: bool = True) -> None:
    """Let the folder of the result be chosen.

    Args:
        parser: gets `--results`.
        has_quick: whether it has `--quick` too.
    """
    default = f"{RESULTS_DIR}, quick: the work folder" if has_quick else str(RESULTS_DIR)
    parser.add_argument("--results", type=Path, help=f"folder for the result (default: {default})")


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Let engine and precision be chosen."""
    parser.add_argument(
        "--engine",
        choices=list(PRECISIONS),
        default="onnxruntime",
        help="tensorrt and tensorrt_rtx measure this machine's GPU (default: %(default)s)",
    )
    choices = "; ".join(f"{engine}: {', '.join(names)}" for engine, names in PRECISIONS.items())
    parser.add_argument("--precision", help=f"of the decoder's weights; {choices} (the first)")


def engine_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Engine and precision, by their names in `Subject`."""
    precision = arguments.precision or PRECISIONS[arguments.engine][0]
    return {"engine": arguments.engine, "precision": precision}


def results_dir(arguments: argparse.Namespace) -> Path:
    """Where the result goes: figures of a quick run mean little, so they are not among the others."""
    if arguments.results is not None:
        return Path(arguments.results)
    is_quick = getattr(arguments, "quick", False)
    return Path(arguments.work_dir) if is_quick else ROOT / RESULTS_DIR
