"""Measuring: every engine in turn, each with the machine to itself."""

from __future__ import annotations

import gc
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.client import Request
from benchmarks.floors import MachineSpeed, SpeedTest
from benchmarks.hugging_face import HuggingFaceEngine
from benchmarks.peers.engine import Engine
from benchmarks.peers.metrics import TOKENS_PER_S, TTFT_P50
from benchmarks.peers.own import TritonVlm
from benchmarks.peers.peer import Checkpoint, Peer
from benchmarks.peers.results import EngineResult, PeerResults, Reference
from benchmarks.processes import CpuMeter, MemoryMeter
from benchmarks.summary import Burst
from benchmarks.worker import Worker
from benchmarks.workload import Load, Workload, pictures_load

_WARM_UP = 1_000_000
"""Number of the bursts that no time counts of."""
_MEMORY_CONCURRENCY = 8
_MAX_REASON_LENGTH = 400


def measure_speed() -> MachineSpeed:
    """The machine's speed now."""
    with Worker(SpeedTest) as test:
        speed: MachineSpeed = test.call("run")
        return speed


def run_burst(engine: Engine, workload: Workload, load: Load, repeat: int) -> Burst:
    """Send one burst and wait for all answers."""
    starts_s = load.starts_s(repeat)
    requests = [
        Request(
            messages=messages,
            num_tokens=load.num_output_tokens,
            start_s=starts_s[i % load.concurrency],
        )
        for i, messages in enumerate(workload.conversations(load, repeat))
    ]
    rounds = [requests[i : i + load.concurrency] for i in range(0, len(requests), load.concurrency)]
    gc.collect()
    with CpuMeter(engine.groups, time.perf_counter) as cpu:
        start = time.perf_counter()
        answers = [answer for some in rounds for answer in engine.ask(some)]
        wall_s = time.perf_counter() - start
    tells_tokens = all(answer.token_ids is not None for answer in answers)
    return Burst(
        requests=[answer.timing for answer in answers],
        wall_s=wall_s,
        cpu_s=cpu.cpu_s,
        foreign_cpu_share=cpu.foreign_share,
        texts=[answer.text for answer in answers],
        token_ids=[answer.token_ids or () for answer in answers] if tells_tokens else None,
    )


class Comparison:
    """Measures engines into results.

    Args:
        results: gets everything.
        workload: makes the requests.
        console: for progress.
    """

    def __init__(self, results: PeerResults, workload: Workload, console: Console) -> None:
        self._results = results
        self._plan = results.plan
        self._workload = workload
        self._console = console

    def measure(self, peer: Peer, failure: str | None) -> None:
        """All loads of one peer; what fails is said in the result, and the run goes on.

        Args:
            peer: to measure.
            failure: of its set-up, None when it can be started.
        """
        result = EngineResult(
            name=peer.name,
            version=peer.version,
            is_ours=isinstance(peer, TritonVlm),
            is_served=peer.is_served,
            failure=failure,
        )
        self._results.engines.append(result)
        if failure is not None:
            return
        result.speed = measure_speed()
        self._results.speeds.append(result.speed)
        for loads, caches in ((self._plan.plain_loads, False), (self._plan.cached_loads, True)):
            try:
                self._measure(peer, result, loads, caches=caches)
            except Exception as error:  # a peer may fail in any way
                self._note_failure(result, describe(error))

    def _note_failure(self, result: EngineResult, reason: str) -> None:
        """Keep the first reason: others follow from it."""
        result.failure = result.failure or reason
        self._console.print(f"  {result.name} failed: {reason}", markup=False)

    def _measure(
        self, peer: Peer, result: EngineResult, loads: Sequence[Load], *, caches: bool
    ) -> None:
        loads = [load for load in loads if peer.measures(load)]
        # Without loads too: the shorter one of two starts counts, because the first may read from the disk.
        self._console.print(f"{peer.name}: starting, caches {'on' if caches else 'off'} ...")
        start = time.perf_counter()
        engine = peer.start(caches=caches)
        try:
            ready_s = time.perf_counter() - start
            num_tokens = min(load.num_output_tokens for load in self._plan.loads)
            first = run_burst(engine, self._workload, pictures_load(1, num_tokens), _WARM_UP)
            cold_start_s = ready_s + first.requests[0].ttft_s
            if result.cold_start_s is None:
                result.peak_bytes = self._peak_bytes(engine, num_tokens)
                result.cold_start_s = cold_start_s
            elif loads:  # they find the engine as warm as those of the first start
                self._peak_bytes(engine, num_tokens)
            result.cold_start_s = min(result.cold_start_s, cold_start_s)
            for repeat in range(self._plan.repeats):
                for load in loads:
                    try:
                        burst = run_burst(engine, self._workload, load, repeat)
                    except Exception as error:  # of one load; the others may do
                        self._note_failure(result, f"{load.label}: {describe(error)}")
                        continue
                    result.bursts.setdefault(load.label, []).append(burst)
                    self._console.print(
                        f"  {load.label}, {repeat + 1} of {self._plan.repeats}: "
                        f"{TOKENS_PER_S.of(burst):.1f} tokens/s, TTFT {TTFT_P50.of(burst):.2f} s, "
                        f"{burst.wall_s:.0f} s"
                    )
        finally:
            engine.stop()

    def _peak_bytes(self, engine: Engine, num_tokens: int) -> int:
        """The most memory it takes while it answers several requests with pictures."""
        with MemoryMeter(engine.groups) as memory:
            load = pictures_load(_MEMORY_CONCURRENCY, num_tokens)
            run_burst(engine, self._workload, load, _WARM_UP)
        return sum(memory.peak.values())

    def ask_hugging_face(self, checkpoint: Checkpoint, model_folder: Path) -> None:
        """The reference answers; in fp32, whatever the precision of the others.

        Args:
            checkpoint: what the engines served.
            model_folder: the project's model of it, for its preprocessing.
        """
        tokenizer = checkpoint.folder / "tokenizer.json"
        with Worker(HuggingFaceEngine, checkpoint.folder, model_folder, tokenizer) as engine:
            for load in self._plan.loads:
                burst: Burst = engine.call("run", load, 0, self._plan.num_references)
                token_ids = burst.token_ids or ()
                texts = [checkpoint.text(ids) for ids in token_ids]
                self._results.references[load.label] = Reference(token_ids=token_ids, texts=texts)
                self._console.print(f"  {load.label}: {len(texts)} answers, {burst.wall_s:.0f} s")


def set_up(peers: Sequence[Peer], console: Console) -> dict[str, str]:
    """Make every peer ready; returns why those that cannot be are not, by name."""
    failures = {}
    for peer in peers:
        console.print(f"{peer.name}: setting up ...")
        start = time.perf_counter()
        try:
            peer.set_up()
        except Exception as error:  # a peer may fail in any way
            failures[peer.name] = describe(error)
            console.print(f"  failed: {failures[peer.name]}", markup=False)
        else:
            console.print(f"  {time.perf_counter() - start:.0f} s")
    return failures


def describe(error: Exception) -> str:
    """An error in one line that fits into a table, with the last line of a program's log."""
    lines = [*str(error).splitlines(), *getattr(error, "log_tail", "").splitlines()[-1:]]
    text = "; ".join(line.strip() for line in lines if line.strip()).replace("|", "/")
    return f"{type(error).__name__}: {textwrap.shorten(text, _MAX_REASON_LENGTH)}"
