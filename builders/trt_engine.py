"""ONNX graphs to TensorRT engines, with `tensorrt` or `tensorrt_rtx`: both have the same Python API.

TensorRT-RTX builds for a GPU that the machine does not have; plain TensorRT builds for the one it
has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from builders.profiles import Profile
from python_backend.errors import BundleError
from python_backend.runtimes.tensorrt import load_tensorrt, new_log
from python_backend.spec import GraphSpec

_UNUSED = "Unused Input"
"""What the parser says when it drops an input that it does not understand: the engine would be
wrong without a word (the lengths of ONNX's own Attention go this way)."""


def trt_version(engine: str) -> str:
    """Module and version of `tensorrt` or `tensorrt_rtx`.

    Raises:
        BundleError: it is not installed.
    """
    trt = load_tensorrt(engine)
    return f"{trt.__name__} {trt.__version__}"


def engine_from_onnx(
    path: Path,
    spec: GraphSpec,
    profiles: Sequence[Profile],
    *,
    gpu: str | None = None,
    say: Callable[[str], None] | None = None,
) -> bytes:
    """Build the engine of one graph.

    Args:
        path: the ONNX file.
        spec: its contract.
        profiles: one optimization profile each.
        gpu: such as `sm89`, for TensorRT-RTX; None for the GPU of this machine.
        say: told of every phase of the build.

    Raises:
        BundleError: TensorRT refuses the graph, or drops one of its inputs.
    """
    trt = load_tensorrt("tensorrt_rtx" if gpu else "tensorrt")
    log = new_log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse(path.read_bytes(), str(path)):  # the name says where the weights lie
        errors = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        raise _failure(path, errors or log.lines)
    config = builder.create_builder_config()
    if say is not None:
        config.progress_monitor = _new_monitor(trt, say)
    if gpu is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(_compute_capability(trt, gpu), 0)
        # A CUDA graph cannot be captured while an engine allocates memory of its own.
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    for sizes in profiles:
        profile = builder.create_optimization_profile()
        for tensor in spec.inputs:
            axes = [(dim,) * 3 if isinstance(dim, int) else sizes[dim] for dim in tensor.shape]
            profile.set_shape(tensor.name, *zip(*axes, strict=True))
        config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    dropped = [line for line in log.lines if _UNUSED in line]
    if engine is None or dropped:
        raise _failure(path, dropped or log.lines)
    _check_tensors(path, spec, network)
    return bytes(engine)


def _new_monitor(trt: ModuleType, say: Callable[[str], None]) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc,name-defined]
        """Passes phases on; never asks to stop."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, name: str, parent: str | None, num_steps: int) -> None:
            say(name)

        def step_complete(self, name: str, step: int) -> bool:
            return True

        def phase_finish(self, name: str) -> None:
            pass

    return Monitor()


def _compute_capability(trt: ModuleType, gpu: str) -> Any:
    try:
        return getattr(trt.ComputeCapability, gpu.upper())
    except AttributeError:
        raise BundleError(f"{trt.__name__} builds no engines for {gpu}") from None


def _check_tensors(path: Path, spec: GraphSpec, network: Any) -> None:
    """The network must take and give what the contract says, in its order."""
    inputs = [network.get_input(i).name for i in range(network.num_inputs)]
    outputs = [network.get_output(i).name for i in range(network.num_outputs)]
    wanted = [t.name for t in spec.inputs], [t.name for t in spec.outputs]
    if (sorted(inputs), sorted(outputs)) != (sorted(wanted[0]), sorted(wanted[1])):
        raise BundleError(f"{path} becomes a network of {inputs} and {outputs}, not {wanted}")


def _failure(path: Path, lines: Sequence[str]) -> BundleError:
    return BundleError(f"TensorRT cannot build {path}: {'; '.join(lines) or 'it gives no reason'}")
