"""The comparison: makes every peer ready, measures each in turn, writes a result.

python -m benchmarks.peers.run            # the 0.5B-shaped checkpoint
python -m benchmarks.peers.run --quick    # a tiny one: does everything work?
python -m benchmarks.peers.run --resume   # go on with a run that was interrupted
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.checkpoint import PRESETS, make_checkpoint
from benchmarks.command_line import WORK_DIR, CommandLine, add_quick, add_results, results_dir
from benchmarks.environment import describe
from benchmarks.floors import floor_of, work_of
from benchmarks.peers.comparison import Comparison, measure_speed, set_up
from benchmarks.peers.llama_cpp import LlamaCpp
from benchmarks.peers.onnxruntime_genai import OnnxRuntimeGenAI
from benchmarks.peers.openvino_genai import OpenVinoGenAI
from benchmarks.peers.own import Offline, TritonVlm
from benchmarks.peers.peer import Checkpoint, Peer
from benchmarks.peers.plan import LOADS, NUM_REFERENCES, PeerPlan, loads_of
from benchmarks.peers.plot import draw
from benchmarks.peers.report import to_markdown
from benchmarks.peers.results import PeerResults
from benchmarks.peers.transformers_serve import TransformersServe
from benchmarks.peers.unfinished import Unfinished
from benchmarks.peers.vllm import Vllm
from benchmarks.peers.work_folder import WorkFolder
from benchmarks.result_files import write_files
from benchmarks.workload import Load, Workload, pictures_load

_LINE = CommandLine("benchmarks.peers.run", __doc__, WORK_DIR / "peers")
_OURS: tuple[type[TritonVlm], ...] = (TritonVlm, Offline)
_PEERS: tuple[type[Peer], ...] = (
    Vllm,
    LlamaCpp,
    TransformersServe,
    OpenVinoGenAI,
    OnnxRuntimeGenAI,
)


def compare(
    peers: Sequence[Peer],
    checkpoint: Checkpoint,
    plan_of: Callable[[float], PeerPlan],
    command: str,
    folder: Path,
    console: Console,
    unfinished: Unfinished,
    *,
    resume: bool,
) -> Path:
    """Measure all peers; what is there is written after each, so that nothing measured is lost.

    Args:
        peers: the project's own first.
        checkpoint: what they serve.
        plan_of: from the requests per second that the machine's floor allows to what is measured.
        command: the whole command line.
        folder: for the result.
        console: for progress.
        unfinished: keeps what was measured until the end.
        resume: whether to go on from what it has.

    Returns:
        The page.

    Raises:
        SystemExit: the project's own model cannot be built, or there is nothing to go on from.
    """
    failures = set_up(peers, console)
    own = next(peer for peer in peers if isinstance(peer, TritonVlm))
    if own.name in failures:
        raise SystemExit(f"the checkpoint cannot be built: {failures[own.name]}")
    model_folder = own.repository / checkpoint.folder.name
    workload = Workload(checkpoint.folder / "tokenizer.json")
    work, speed = work_of(checkpoint.folder, checkpoint.precision), measure_speed()

    def num_tokens(load: Load) -> int:
        counts = map(checkpoint.num_tokens, workload.conversations(load, 0))
        # The template has one placeholder per picture.
        return max(counts) + load.num_pictures_each * (work.tokens_per_picture - 1)

    eight = pictures_load(8)
    ceiling = floor_of(work, speed, eight, num_tokens(eight))
    plan = plan_of(ceiling.tokens_per_s / eight.num_output_tokens)
    environment = describe(model_folder, command)
    if resume:
        results = unfinished.load(plan)
        results.resumed.append(environment.started)
    else:
        results = PeerResults(
            environment=environment,
            model=checkpoint.folder.name,
            plan=plan,
            speeds=[speed],
            work=work,
            num_prompt_tokens={load.label: num_tokens(load) for load in plan.loads},
        )
    comparison = Comparison(results, workload, console)
    measured = {engine.name for engine in results.engines}
    for peer in peers:
        if peer.name in measured:
            console.print(f"{peer.name}: measured before the interruption")
            continue
        comparison.measure(peer, failures.get(peer.name))
        unfinished.save(results)
        write(results, folder)
    console.print("Hugging Face: answering for the comparison of tokens ...")
    comparison.ask_hugging_face(checkpoint, model_folder)
    unfinished.delete()
    return write(results, folder)


def write(results: PeerResults, folder: Path) -> Path:
    """Write the page, every timing and the picture; returns the page."""
    name = f"peers_{results.model}_{results.plan.precision}"
    return write_files(results, name, folder, to_markdown, draw)


def _parser() -> argparse.ArgumentParser:
    names = [peer.name for peer in _PEERS]
    parser = _LINE.parser("environments and converted checkpoints")
    add_quick(parser, "a tiny checkpoint and short answers")
    add_results(parser)
    parser.add_argument("--peers", nargs="*", choices=names, default=names, help="default: all")
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=LOADS, help="default: all")
    parser.add_argument(
        "--precision", choices=TritonVlm.precisions, default="fp32", help="of the weights"
    )
    parser.add_argument("--repeats", type=int, default=2, help="bursts per load (default: 2)")
    parser.add_argument(
        "--concurrencies",
        type=int,
        nargs="+",
        default=[1, 4, 8, 16],
        help="requests at once with pictures (default: 1 4 8 16)",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the last run of this precision, which was interrupted",
    )
    parser.add_argument(
        "--set-up-only", action="store_true", help="environments and checkpoints, no measurement"
    )
    return parser


def main(argv: Sequence[str]) -> None:
    """Run the comparison."""
    arguments = _parser().parse_args(argv)
    quick, preset = arguments.quick, "tiny" if arguments.quick else "05b"
    console, command = _LINE.start(argv)
    work = WorkFolder(arguments.work_dir)
    folder = make_checkpoint(PRESETS[preset], work.root / "checkpoints")
    checkpoint = Checkpoint(folder, arguments.precision, len(os.sched_getaffinity(0)))
    chosen = [*_OURS, *(kind for kind in _PEERS if kind.name in arguments.peers)]
    for kind in chosen:
        if arguments.precision not in kind.precisions:
            console.print(f"{kind.name} is left out: it has no {arguments.precision} weights here")
    peers = [kind(work, checkpoint) for kind in chosen if arguments.precision in kind.precisions]
    if arguments.set_up_only:
        sys.exit(1 if set_up(peers, console) else 0)

    def plan_of(requests_per_s: float) -> PeerPlan:
        return PeerPlan(
            preset=preset,
            precision=arguments.precision,
            loads=loads_of(arguments.loads, arguments.concurrencies, requests_per_s, quick=quick),
            repeats=arguments.repeats,
            num_references=NUM_REFERENCES[arguments.precision],
        )

    page = compare(
        peers,
        checkpoint,
        plan_of,
        command,
        results_dir(arguments),
        console,
        Unfinished(work.root / f"unfinished_{preset}_{arguments.precision}.json"),
        resume=arguments.resume,
    )
    Console().print(page.read_text(encoding="utf-8"), soft_wrap=True, markup=False, highlight=False)
    console.print(f"written to {page}")


if __name__ == "__main__":
    main(sys.argv[1:])
