"""A written graph to one TensorRT engine per GPU, and what each of them cost."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from builders.profiles import Profile
from builders.trt_engine import engine_from_onnx
from python_backend.spec import GraphSpec

_PEAK = re.compile(r"VmHWM:\s+(\d+) kB")

Costs = dict[str, dict[str, float]]
"""Target to seconds, peak_bytes and engine_bytes."""


def build_engines(
    path: Path,
    spec: GraphSpec,
    profiles: Sequence[Profile],
    engine: str,
    targets: Sequence[str],
    say: Callable[[str], None],
) -> tuple[dict[str, Path], Costs]:
    """Build engines beside a graph.

    Args:
        path: the ONNX file.
        spec: its contract.
        profiles: one optimization profile each.
        engine: tensorrt_rtx, or tensorrt, whose only target is the GPU of this machine.
        targets: such as sm89.
        say: told what is being done.

    Returns:
        Target to engine file, and target to costs.

    Raises:
        BundleError: TensorRT cannot build one of them.
    """
    paths, costs = {}, Costs()
    for target in targets:
        say(f"Building the engine {spec.name} for {target}")
        _reset_peak()
        start = time.monotonic()

        def say_phase(phase: str, target: str = target) -> None:
            say(f"{spec.name} for {target}: {phase}")

        gpu = target if engine == "tensorrt_rtx" else None
        plan = engine_from_onnx(path, spec, profiles, gpu=gpu, say=say_phase)
        paths[target] = path.with_suffix(f".{target}.engine")
        paths[target].write_bytes(plan)
        costs[target] = {
            "seconds": round(time.monotonic() - start, 1),
            "peak_bytes": _peak(),
            "engine_bytes": len(plan),
        }
    return paths, costs


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak() -> int:
    """The most memory this process has had since the reset, in bytes."""
    match = _PEAK.search(Path("/proc/self/status").read_text(encoding="ascii"))
    return int(match.group(1)) * 1024 if match else 0
