"""What every benchmark of the project does: build a model, measure the machine, ask both engines in turn."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.checkpoint import PRESETS, make_checkpoint
from benchmarks.command_line import ROOT
from benchmarks.environment import Environment, describe
from benchmarks.floors import MachineSpeed, ModelWork, SpeedTest, work_of
from benchmarks.gpu_speed import GpuSpeedTest, gpu_bytes_in_use, require_gpu
from benchmarks.offline import OfflineEngine
from benchmarks.served import ServedEngine
from benchmarks.summary import Burst
from benchmarks.worker import Worker
from benchmarks.workload import Load, Workload
from builders.options import BuildOptions
from python_backend.gpu import Gpu
from triton_vlm.model_source import DEFAULT_CHECKPOINT
from triton_vlm.stack import ServingStack

_WARM_UP = 1_000_000
"""Number of the burst that memory is measured on and that no time counts of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The model that is measured.

    Attributes:
        preset: of the checkpoint; None for the default model.
        engine: as `triton-vlm build` takes it.
        precision: the same.
        max_seqs: answers generated at once.
        max_model_len: tokens of a request; None for the builder's default.
    """

    preset: str | None
    engine: str = "onnxruntime"
    precision: str = "fp32"
    max_seqs: int = 16
    max_model_len: int | None = None

    @property
    def is_gpu(self) -> bool:
        """Whether its engines are for a GPU."""
        return self.engine != "onnxruntime"

    @property
    def folder_name(self) -> str:
        """Of a model repository: one for each way of building, so that none replaces another."""
        name = f"{self.engine}-{self.precision}"
        return f"{name}-{self.max_seqs}x{self.max_model_len}" if self.max_model_len else name


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What both engines did.

    Attributes:
        served: bursts of each load.
        offline: bursts of the same loads, one by one right after the served ones.
        peak_memory: bytes by server process during a burst of the load that memory is measured at.
        gpu_bytes: of the GPU that the server takes; None without one, or where it shares the host's.
    """

    served: Sequence[Sequence[Burst]]
    offline: Sequence[Sequence[Burst]]
    peak_memory: dict[str, int]
    gpu_bytes: int | None


class Session:
    """One run.

    Args:
        subject: what to measure.
        work_dir: keeps checkpoints and built models between runs.
        console: for progress.

    Raises:
        BundleError: the engine has no such precision, or needs a GPU that is not there.
    """

    def __init__(self, subject: Subject, work_dir: Path, console: Console) -> None:
        self.subject = subject
        self._work_dir = work_dir
        self._console = console
        self._preset = subject.preset and PRESETS[subject.preset]
        self.gpu: Gpu | None = None
        gpu_target = ""
        if subject.is_gpu:
            self.gpu, gpu_target = require_gpu()
        self._options = BuildOptions(
            model=str(self.checkpoint),
            output=work_dir / "model_repository" / subject.folder_name,
            name=self.checkpoint.name,
            engine=subject.engine,
            precision=subject.precision,
            gpus=(gpu_target,) if subject.engine == "tensorrt_rtx" else (),
            max_seqs=subject.max_seqs,
            max_model_len=subject.max_model_len,
        )

    @cached_property
    def checkpoint(self) -> Path:
        """Its folder."""
        if not self._preset:
            return DEFAULT_CHECKPOINT
        return self._work_dir / "checkpoints" / self._preset.name

    @property
    def name(self) -> str:
        """Of the model."""
        return self._options.triton_name

    @property
    def folder(self) -> Path:
        """The built model."""
        return self._options.output / self.name

    @property
    def tokenizer(self) -> Path:
        """For the workload."""
        return self.checkpoint / "tokenizer.json"

    def prepare(self) -> None:
        """Make the checkpoint and build it, unless that has been done.

        Raises:
            SystemExit: it cannot be built; the builder has said why.
        """
        if self._preset:
            with self.step("Making the checkpoint"):
                make_checkpoint(self._preset, self.checkpoint.parent)
        options = self._options
        arguments = ["--model", options.model, "--output", str(options.output)]
        arguments += ["--name", self.name, "--max-seqs", str(options.max_seqs)]
        arguments += ["--engine", options.engine, "--precision", options.precision]
        if options.gpus:
            arguments += ["--gpu", ",".join(options.gpus)]
        if options.max_model_len:
            arguments += ["--max-model-len", str(options.max_model_len)]
        with self.step("Building it for Triton"):
            # A program of its own: the memory that verification takes goes with it.
            command = [sys.executable, "-m", "builders.build", *arguments]
            if subprocess.run(command, cwd=ROOT).returncode:
                raise SystemExit(f"{self.name} cannot be built: the reason is above")

    def describe(self, command: str) -> Environment:
        """Where and with what it is measured."""
        return describe(self.folder, command, self.gpu)

    def speed(self) -> MachineSpeed:
        """Of the machine, or of its GPU if that computes."""
        test = GpuSpeedTest if self.subject.is_gpu else SpeedTest
        with self.step("Measuring the machine"), Worker[GpuSpeedTest | SpeedTest](test) as worker:
            speed: MachineSpeed = worker.call("run")
            return speed

    def work(self) -> ModelWork:
        """What the model asks of the machine."""
        return work_of(self.checkpoint, self.subject.precision, is_gpu=self.subject.is_gpu)

    def measure(self, loads: Sequence[Load], repeats: int, memory_load: Load) -> Measured:
        """Ask both engines, which take turns."""
        served: list[list[Burst]] = [[] for _ in loads]
        offline: list[list[Burst]] = [[] for _ in loads]
        gpu_bytes_before = gpu_bytes_in_use() if self.subject.is_gpu else None
        stack = ServingStack(self._options.output, self.name, log_dir=self._work_dir / "logs")
        with self.step("Starting Triton and the proxy"):
            stack.start()
        try:
            server = ServedEngine(stack, Workload(self.tokenizer))
            # Before another process maps the same weights and takes its share of their pages.
            with self.step(f"Warming up and measuring memory: {memory_load.label}"):
                peak = server.peak_memory(memory_load, _WARM_UP)
            gpu_bytes = gpu_bytes_in_use() if self.subject.is_gpu else None
            with Worker(OfflineEngine, self.folder, self.tokenizer) as engine, self.bars() as bars:
                task = bars.add_task("", total=2 * repeats * len(loads))
                engine.call("run", loads[0], _WARM_UP)
                for repeat in range(repeats):
                    for load, of_server, of_engine in zip(loads, served, offline, strict=True):
                        bars.update(task, description=f"{load.label}, served")
                        of_server.append(server.run(load, repeat))
                        bars.update(task, description=f"{load.label}, offline", advance=1)
                        of_engine.append(engine.call("run", load, repeat))
                        bars.update(task, advance=1)
        finally:
            stack.stop()
        if gpu_bytes is not None and gpu_bytes_before is not None:
            gpu_bytes -= gpu_bytes_before
        return Measured(served=served, offline=offline, peak_memory=peak, gpu_bytes=gpu_bytes)

    def bars(self) -> Progress:
        """A progress bar."""
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
    def step(self, title: str) -> Iterator[None]:
        """Say what is being done, and how long it took."""
        start = time.monotonic()
        self._console.print(f"{title} ...")
        yield
        self._console.print(f"  {time.monotonic() - start:.0f} s")


def model_and_format(model: str, engine: str, precision: str) -> str:
    """A model and what was made of it, for file names; what is usual is left out."""
    formats = {"onnxruntime": "", "fp32": ""}
    parts = [model, formats.get(engine, engine), formats.get(precision, precision)]
    return "_".join(part for part in parts if part)
