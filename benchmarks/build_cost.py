"""What a build costs: time and memory, from a random checkpoint to graphs and engines.

python -m benchmarks.build_cost 05b         # 4 GB of disk, some minutes
python -m benchmarks.build_cost 7b          # 25 GB of disk, 8 GB of memory

Checkpoint and built models are deleted at the end.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks.checkpoint import PRESETS, make_checkpoint
from benchmarks.command_line import ROOT, CommandLine, add_results, results_dir
from benchmarks.environment import Environment, describe
from benchmarks.processes import high_water_bytes_of, machine_cpu_s
from benchmarks.report import markdown_table
from benchmarks.results import NOISY_SHARE
from python_backend.manifest import FILE_NAME, VERSION_DIR

_SAMPLE_INTERVAL_S = 0.1
_GPU = "sm89"


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """One build, and what was promised of it.

    Attributes:
        engine: as `triton-vlm build` takes it.
        precision: the same.
        max_seconds: it may take, engine included.
        max_memory_share: bytes of memory per byte of the checkpoint, at most.
        max_memory_bytes: of memory, at most.
    """

    engine: str
    precision: str
    max_seconds: float | None = None
    max_memory_share: float | None = None
    max_memory_bytes: int | None = None

    @property
    def label(self) -> str:
        """For tables."""
        target = f" for {_GPU}" if self.engine == "tensorrt_rtx" else ""
        return f"{self.engine} {self.precision}{target}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one build took.

    Attributes:
        seconds: from the start of the command to its end.
        engine_seconds: of these, in TensorRT.
        peak_bytes: most memory of the process and its children.
        written_bytes: size of the built model.
        foreign_cpu_share: share of the machine that other programs used meanwhile.
    """

    seconds: float
    engine_seconds: float
    peak_bytes: int
    written_bytes: int
    foreign_cpu_share: float


_SMALL = (
    Build(engine="onnxruntime", precision="fp32", max_seconds=60, max_memory_share=1.5),
    Build(engine="onnxruntime", precision="int4", max_seconds=60, max_memory_share=1.5),
    Build(engine="tensorrt_rtx", precision="bf16", max_seconds=120),
    Build(engine="tensorrt_rtx", precision="fp8", max_seconds=120),
    Build(engine="tensorrt_rtx", precision="int4", max_seconds=120),
)
BUILDS = {
    "tiny": _SMALL,
    "05b": _SMALL,
    "7b": (Build(engine="onnxruntime", precision="int4", max_memory_bytes=8 * 10**9),),
}
"""By preset of the checkpoint."""


def measure(build: Build, checkpoint: Path, repository: Path) -> Cost:
    """Build in a process of its own, into a repository that is empty afterwards.

    Raises:
        RuntimeError: the build fails.
    """
    command = [sys.executable, "-m", "builders.build", "--model", str(checkpoint)]
    command += ["--output", str(repository), "--name", "measured", "--skip-verify"]
    command += ["--engine", build.engine, "--precision", build.precision]
    if build.engine == "tensorrt_rtx":
        command += ["--gpu", _GPU]
    log, peak = repository.with_suffix(".log"), 0
    start, machine, ours = time.monotonic(), machine_cpu_s(), _our_cpu_s()
    with log.open("w", encoding="utf-8") as stderr:
        process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stderr=stderr)
        # The builder resets its own high-water mark before an engine, so the last one is not enough.
        try:
            while process.poll() is None:
                peak = max(peak, high_water_bytes_of([process.pid]))
                time.sleep(_SAMPLE_INTERVAL_S)
        except BaseException:
            process.kill()  # ctrl-C does not reach another session
            raise
    seconds = time.monotonic() - start
    foreign_cpu_s = machine_cpu_s() - machine - (_our_cpu_s() - ours)
    if process.returncode:
        raise RuntimeError(log.read_text(encoding="utf-8"))
    manifest = repository / "measured" / VERSION_DIR / FILE_NAME
    graphs = json.loads(manifest.read_text(encoding="utf-8"))
    costs = [
        cost for name in ("vision_encoder", "decoder") for cost in graphs[name]["costs"].values()
    ]
    written = sum(path.stat().st_size for path in repository.rglob("*") if path.is_file())
    shutil.rmtree(repository)
    return Cost(
        seconds=seconds,
        engine_seconds=sum(cost["seconds"] for cost in costs),
        peak_bytes=peak,
        written_bytes=written,
        foreign_cpu_share=max(0.0, foreign_cpu_s) / (seconds * (os.cpu_count() or 1)),
    )


def _our_cpu_s() -> float:
    """Processor time of this process and of its children that have ended."""
    return sum(os.times()[:4])


Rows = list[tuple[str, ...]]


def cost_rows(costs: Sequence[tuple[Build, Cost]], checkpoint_bytes: int) -> Rows:
    """One row per build."""
    rows: Rows = []
    for build, cost in costs:
        others = f"{cost.foreign_cpu_share:.0%}"
        rows.append(
            (
                build.label,
                f"{cost.seconds:.0f}",
                f"{cost.engine_seconds:.0f}" if cost.engine_seconds else "-",
                f"{cost.peak_bytes / 1e9:.2f}",
                f"{cost.peak_bytes / checkpoint_bytes:.2f}",
                f"{cost.written_bytes / 1e9:.2f}",
                f"**{others}**" if cost.foreign_cpu_share > NOISY_SHARE else others,
            )
        )
    return rows


def target_rows(costs: Sequence[tuple[Build, Cost]], checkpoint_bytes: int) -> Rows:
    """One row per promise."""
    rows: Rows = []
    for build, cost in costs:
        for what, limit, measured, unit in (
            ("time", build.max_seconds, cost.seconds, "s"),
            (
                "memory over checkpoint",
                build.max_memory_share,
                cost.peak_bytes / checkpoint_bytes,
                "",
            ),
            ("memory", _in_gb(build.max_memory_bytes), cost.peak_bytes / 1e9, "GB"),
        ):
            if limit is not None:
                verdict = "met" if measured <= limit else "NOT MET"
                wanted, found = f"at most {limit:g} {unit}", f"{measured:.2f} {unit}"
                rows.append((f"{build.label}: {what}", wanted.strip(), found.strip(), verdict))
    return rows


def _in_gb(num_bytes: int | None) -> float | None:
    return None if num_bytes is None else num_bytes / 1e9


def to_markdown(
    name: str,
    environment: Environment,
    costs: Sequence[tuple[Build, Cost]],
    checkpoint_bytes: int,
) -> str:
    """The page."""
    sections = [
        f"# What builds of {name} cost, {environment.slug}",
        f"`{environment.command}`",
        f"{environment.in_words}; times of builds "
        f"during which other programs used more than {NOISY_SHARE:.0%} of it (bold) are worth little.",
        f"{environment.software}.",
        f"The checkpoint has {checkpoint_bytes / 1e9:.2f} GB of bfloat16 weights and was written just "
        "before, so reading it is from memory where that is large enough. Builds are not verified.",
        "## Targets",
        markdown_table(
            ("target", "wanted", "measured", "met"), target_rows(costs, checkpoint_bytes)
        ),
        "## Costs",
        markdown_table(
            (
                *("build", "s", "of which TensorRT", "memory GB", "over checkpoint"),
                *("model GB", "others' CPU"),
            ),
            cost_rows(costs, checkpoint_bytes),
        ),
        "Memory is the largest resident set of the process and its children. It counts pages of the "
        "checkpoint that are mapped.",
    ]
    return "\n\n".join(sections) + "\n"


def run(preset_name: str, work_dir: Path, results: Path, command: str, console: Console) -> Path:
    """Make the checkpoint, build it in every way, delete everything but the page that says what it took."""
    preset = PRESETS[preset_name]
    environment = describe(None, command)
    work_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work_dir) as folder:
        console.print(f"Making {preset.name} ...")
        checkpoint = make_checkpoint(preset, Path(folder))
        weights = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
        costs = []
        for build in BUILDS[preset_name]:
            console.print(f"Building it: {build.label} ...")
            cost = measure(build, checkpoint, Path(folder) / "model_repository")
            console.print(f"  {cost.seconds:.0f} s, {cost.peak_bytes / 1e9:.2f} GB of memory")
            costs.append((build, cost))
    page = results / f"{environment.file_stem(f'build_{preset.name}')}.md"
    results.mkdir(parents=True, exist_ok=True)
    page.write_text(to_markdown(preset.name, environment, costs, weights), encoding="utf-8")
    return page


def main(argv: Sequence[str]) -> None:
    """Run the benchmark and write its page."""
    line = CommandLine("benchmarks.build_cost", __doc__)
    parser = line.parser("nothing, but has room for the checkpoint and a model")
    parser.add_argument("preset", choices=BUILDS, help="shape of the checkpoint")
    add_results(parser, has_quick=False)
    arguments = parser.parse_args(argv)
    console, command = line.start(argv)
    page = run(arguments.preset, arguments.work_dir, results_dir(arguments), command, console)
    Console().print(page.read_text(encoding="utf-8"), soft_wrap=True, markup=False, highlight=False)
    console.print(f"written to {page}")


if __name__ == "__main__":
    main(sys.argv[1:])
