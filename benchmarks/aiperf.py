"""AIPerf against the served stack: the same load, measured by somebody else's client.

python -m benchmarks.aiperf            # the 0.5B-shaped checkpoint
python -m benchmarks.aiperf --quick    # a tiny one
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.checkpoint import PRESETS, make_checkpoint
from benchmarks.command_line import WORK_DIR, CommandLine, add_quick
from benchmarks.peers.own import TritonVlm
from benchmarks.peers.peer import Checkpoint
from benchmarks.peers.work_folder import WorkFolder
from benchmarks.workload import NUM_TEXT_TOKENS, PICTURE_SIZE
from triton_vlm.stack import ServingStack

_ROUNDS = 4
"""Requests per place of the concurrency."""


def profile(
    python: Path, base_url: str, checkpoint: Path, concurrency: int, artifacts: Path
) -> None:
    """Run AIPerf, which prints its table and writes its files.

    Args:
        python: of its environment.
        base_url: of the OpenAI API.
        checkpoint: its folder, for the tokenizer; its name is the model's.
        concurrency: requests under way together.
        artifacts: folder for its files.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    size, tokens = str(PICTURE_SIZE), str(NUM_TEXT_TOKENS)
    command = [python.parent / "aiperf", "profile", "--model", checkpoint.name]
    command += ["--url", base_url.removesuffix("/v1"), "--endpoint-type", "chat", "--streaming"]
    command += ["--tokenizer", checkpoint, "--artifact-dir", artifacts, "--ui", "none"]
    command += ["--concurrency", str(concurrency), "--request-count", str(_ROUNDS * concurrency)]
    command += ["--synthetic-input-tokens-mean", tokens, "--synthetic-input-tokens-stddev", "0"]
    command += ["--output-tokens-mean", tokens, "--output-tokens-stddev", "0"]
    command += ["--image-width-mean", size, "--image-width-stddev", "0"]
    command += ["--image-height-mean", size, "--image-height-stddev", "0"]
    command += ["--image-format", "png", "--extra-inputs", "ignore_eos:true"]
    command += ["--extra-inputs", "temperature:0", "--no-gpu-telemetry", "--no-server-metrics"]
    # Random tokens are no text that gives the same number of tokens again.
    command.append("--use-server-token-count")
    # Not told to be offline, as this process is: then it takes no tokenizer from a folder.
    environment = {n: v for n, v in os.environ.items() if not n.endswith("_OFFLINE")}
    subprocess.run([str(part) for part in command], check=True, env=environment)


def main(argv: Sequence[str]) -> None:
    """Make everything that is missing, start the stack and ask it."""
    line = CommandLine("benchmarks.aiperf", __doc__, WORK_DIR / "peers")
    parser = line.parser("environment and model")
    add_quick(parser, "a tiny checkpoint")
    parser.add_argument("--concurrency", type=int, default=8, help="default: 8")
    arguments = parser.parse_args(argv)
    line.start(argv)
    work = WorkFolder(arguments.work_dir)
    preset = PRESETS["tiny" if arguments.quick else "05b"]
    folder = make_checkpoint(preset, work.root / "checkpoints")
    own = TritonVlm(work, Checkpoint(folder, "fp32", len(os.sched_getaffinity(0))))
    own.set_up()
    python = work.environment("aiperf")
    logs = work.logs / "aiperf"
    with ServingStack(own.repository, folder.name, log_dir=logs) as stack:
        profile(python, stack.base_url, folder, arguments.concurrency, work.root / "aiperf")


if __name__ == "__main__":
    main(sys.argv[1:])
