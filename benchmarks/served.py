"""The served stack, proxy and Triton with its stages, asked by the openai client over loopback."""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.client import Request, Server
from benchmarks.processes import CpuMeter, MemoryMeter, command_of
from benchmarks.summary import Burst
from benchmarks.workload import Load, Workload
from triton_vlm.stack import ServingStack


class ServedEngine:
    """A running stack and what the client sees of it."""

    def __init__(self, stack: ServingStack, workload: Workload) -> None:
        """Take a stack that has started.

        Args:
            stack: its `proxy` must serve exactly one model.
            workload: makes the requests.
        """
        self._stack = stack
        self._workload = workload
        (model,) = (model["id"] for model in stack.proxy.models())
        self._server = Server(base_url=stack.base_url, model=model)

    @property
    def groups(self) -> tuple[int, int]:
        """The process groups of all server processes."""
        return self._stack.triton.process.pid, self._stack.proxy.process.pid

    def run(self, load: Load, repeat: int) -> Burst:
        """Send one burst and wait for all answers."""
        requests = [
            Request(messages=messages, num_tokens=load.num_output_tokens)
            for messages in self._workload.conversations(load, repeat)
        ]
        with CpuMeter(self.groups, time.perf_counter) as cpu:
            start = time.perf_counter()
            answers = self._server.ask(requests)
            wall_s = time.perf_counter() - start
        self._stack.check()
        return Burst(
            requests=[answer.timing for answer in answers],
            wall_s=wall_s,
            cpu_s=cpu.cpu_s,
            foreign_cpu_share=cpu.foreign_share,
            texts=[answer.text for answer in answers],
        )

    def peak_memory(self, load: Load, repeat: int) -> dict[str, int]:
        """Memory of each server process at its highest sum, in a burst whose times do not count.

        Returns:
            Name of the process to bytes; stages that run several times are numbered.
        """
        with MemoryMeter(self.groups) as memory:
            self.run(load, repeat)
        sizes: dict[str, int] = {}
        for pid, num_bytes in sorted(memory.peak.items()):
            name = self._name(pid)
            number = sum(other.partition(" ")[0] == name for other in sizes)
            sizes[f"{name} {number + 1}" if number else name] = num_bytes
        return sizes

    def _name(self, pid: int) -> str:
        if pid == self._stack.triton.process.pid:
            return "tritonserver"
        if pid == self._stack.proxy.process.pid:
            return "proxy"
        # A stub's first argument is its model's file: <model>/1/model.py.
        folder = Path(command_of(pid)[1]).parent.parent.name
        return folder.rpartition("-")[2] or "other"
