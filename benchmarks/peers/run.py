"""The comparison: makes every peer ready, measures each in turn, writes a result.

python -m benchmarks.peers.run            # the 0.5B-shaped checkpoint
python -m benchmarks.peers.run --quick    # a tiny one: does everything work?
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from benchmarks.checkpoint import PRESETS, make_checkpoint
from benchmarks.environment import describe
from benchmarks.floors import floor_of, work_of
from benchmarks.peers.comparison import Comparison, measure_speed, set_up
from benchmarks.peers.llama_cpp import LlamaCpp
from benchmarks.peers.onnxruntime_genai import OnnxRuntimeGenAI
from benchmarks.peers.openvino_genai import OpenVinoGenAI
from benchmarks.peers.own import Offline, TritonVlm
from benchmarks.peers.peer import Checkpoint, Peer
from benchmarks.peers.plan import LOADS, PeerPlan, loads_of
from benchmarks.peers.plot import draw
from benchmarks.peers.report import to_markdown
from benchmarks.peers.results import PeerResults
from benchmarks.peers.transformers_serve import TransformersServe
from benchmarks.peers.vllm import Vllm
from benchmarks.peers.work_folder import WorkFolder
from benchmarks.result_files import write_files
from benchmarks.workload import Load, Workload, pictures_load

_ROOT = Path(__file__).resolve().parent.parent.parent
_OURS: tuple[type[TritonVlm], ...] = (TritonVlm, Offline)
_PEERS: tuple[type[Peer], ...] = (
    Vllm,
    LlamaCpp,
    TransformersServe,
    OpenVinoGenAI,
    OnnxRuntimeGenAI,
)
_WEIGHT_BITS = {"fp32": 32, "int8": 8, "int4": 4}
"""By precision; scales of blocks are left out of the floor."""


def compare(
    peers: Sequence[Peer],
    checkpoint: Checkpoint,
    plan_of: Callable[[float], PeerPlan],
    command: str,
    folder: Path,
    console: Console,
) -> Path:
    """Measure all peers; what is there is written after each, so that nothing measured is lost.

    Args:
        peers: the project's own first.
        checkpoint: what they serve.
        plan_of: from the requests per second that the machine's floor allows to what is measured.
        command: the whole command line.
        folder: for the result.
        console: for progress.

    Returns:
        The page.

    Raises:
        SystemExit: the project's own model cannot be built.
    """
    failures = set_up(peers, console)
    own = next(peer for peer in peers if isinstance(peer, TritonVlm))
    if own.name in failures:
        raise SystemExit(f"the checkpoint cannot be built: {failures[own.name]}")
    model_folder = own.repository / checkpoint.folder.name
    workload = Workload(checkpoint.folder / "tokenizer.json")
    config = json.loads((checkpoint.folder / "config.json").read_text(encoding="utf-8"))
    work, speed = work_of(checkpoint.folder, config), measure_speed()
    decoder_bytes = work.decoder_bytes * _WEIGHT_BITS[checkpoint.precision] // 32
    work = replace(work, decoder_bytes=decoder_bytes)

    def num_tokens(load: Load) -> int:
        counts = map(checkpoint.num_tokens, workload.conversations(load, 0))
        # The template has one placeholder per picture.
        return max(counts) + max(load.num_image_tokens - 1, 0)

    eight = pictures_load(8)
    ceiling = floor_of(work, speed, eight, num_tokens(eight), eight.num_image_tokens)
    plan = plan_of(ceiling.tokens_per_s / eight.num_output_tokens)
    results = PeerResults(
        environment=describe(model_folder, command),
        model=checkpoint.folder.name,
        plan=plan,
        speeds=[speed],
        work=work,
        num_prompt_tokens={load.label: num_tokens(load) for load in plan.loads},
    )
    comparison = Comparison(results, workload, console)
    for peer in peers:
        comparison.measure(peer, failures.get(peer.name))
        write(results, folder)
    console.print("Hugging Face: answering for the comparison of tokens ...")
    comparison.ask_hugging_face(checkpoint, model_folder)
    return write(results, folder)


def write(results: PeerResults, folder: Path) -> Path:
    """Write the page, every timing and the picture; returns the page."""
    name = f"peers_{results.model}_{results.plan.precision}"
    return write_files(results, name, folder, to_markdown, draw)


def _parser() -> argparse.ArgumentParser:
    names = [peer.name for peer in _PEERS]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="a tiny checkpoint and short answers")
    parser.add_argument("--peers", nargs="*", choices=names, default=names, help="default: all")
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=LOADS, help="default: all")
    parser.add_argument("--precision", choices=_WEIGHT_BITS, default="fp32", help="of the weights")
    parser.add_argument("--repeats", type=int, default=2, help="bursts per load (default: 2)")
    parser.add_argument(
        "--concurrencies",
        type=int,
        nargs="+",
        default=[1, 4, 8, 16],
        help="requests at once with pictures (default: 1 4 8 16)",
    )
    parser.add_argument(
        "--set-up-only", action="store_true", help="environments and checkpoints, no measurement"
    )
    parser.add_argument(
        "--work-dir",
        type=Path,
        default=_ROOT / "build" / "benchmarks" / "peers",
        help="keeps environments and converted checkpoints (default: build/benchmarks/peers)",
    )
    parser.add_argument(
        "--results",
        type=Path,
        help="folder for the result (default: benchmarks/results, quick: the work folder)",
    )
    return parser


def main(argv: Sequence[str]) -> None:
    """Run the comparison."""
    arguments = _parser().parse_args(argv)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    quick, preset = arguments.quick, "tiny" if arguments.quick else "05b"
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    # Absolute: servers and converters are told the paths.
    work = WorkFolder(arguments.work_dir.resolve())
    folder = make_checkpoint(PRESETS[preset], work.root / "checkpoints")
    checkpoint = Checkpoint(folder, arguments.precision, len(os.sched_getaffinity(0)))
    chosen = [
        kind
        for kind in (*_OURS, *_PEERS)
        if (kind in _OURS or kind.name in arguments.peers)
        and arguments.precision in kind.precisions
    ]
    peers = [kind(work, checkpoint) for kind in chosen]
    if arguments.set_up_only:
        sys.exit(1 if set_up(peers, console) else 0)

    def plan_of(requests_per_s: float) -> PeerPlan:
        return PeerPlan(
            preset=preset,
            precision=arguments.precision,
            loads=loads_of(arguments.loads, arguments.concurrencies, requests_per_s, quick=quick),
            repeats=arguments.repeats,
            num_references=2,
        )

    command = " ".join(["python -m benchmarks.peers.run", *argv])
    default = work.root if quick else _ROOT / "benchmarks" / "results"
    page = compare(peers, checkpoint, plan_of, command, arguments.results or default, console)
    Console().print(page.read_text(encoding="utf-8"), soft_wrap=True, markup=False, highlight=False)
    console.print(f"written to {page}")


if __name__ == "__main__":
    main(sys.argv[1:])
