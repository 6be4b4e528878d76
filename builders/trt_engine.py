"""ONNX graphs to TensorRT engines, with `tensorrt` or `tensorrt_rtx`: both have the same Python API.

TensorRT-RTX builds for a GPU that the machine does not have; plain TensorRT builds for the one it
has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from python_backend.errors import BundleError
from python_backend.spec import GraphSpec

Profile = Mapping[str, tuple[int, int, int]]
"""Sizes (smallest, most frequent, largest) of every dynamic axis of a graph, by the axis's name."""

_MODULES = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")
_UNUSED = "Unused Input"
"""What the parser says when it drops an input that it does not understand: the engine would be
wrong without a word (the lengths of ONNX's own Attention go this way)."""


def load_tensorrt() -> ModuleType:
    """The TensorRT that is installed.

    Raises:
        BundleError: none is.
    """
    for name in _MODULES:
        try:
            return import_module(name)
        except ImportError:
            continue
    raise BundleError("TensorRT is not installed: pip install 'triton-vlm[tensorrt-rtx]'")


def decoder_profiles(max_num_seqs: int, max_chunk: int) -> tuple[Profile, Profile]:
    """Decode and prefill. TensorRT's fused decode kernel needs S to be exactly 1.

    Args:
        max_num_seqs: rows of a decode step, at most.
        max_chunk: tokens of a prefill chunk, and image embeddings it may look into, at most.
    """
    one = (1, 1, 1)
    chunk = (2, max(2, max_chunk), max(2, max_chunk))
    decode = {"B": (1, max(1, max_num_seqs // 2), max_num_seqs), "S": one, "I": one, "L": one}
    return decode, {"B": one, "S": chunk, "I": (1, *chunk[1:]), "L": one}


def engine_from_onnx(
    path: Path,
    spec: GraphSpec,
    profiles: Sequence[Profile],
    *,
    gpu: str | None = None,
    weights_dir: Path | None = None,
) -> bytes:
    """Build the engine of one graph.

    Args:
        path: the ONNX file.
        spec: its contract.
        profiles: one optimization profile each.
        gpu: such as `SM89`, for TensorRT-RTX; None for the GPU of this machine.
        weights_dir: where the weights of a linked graph lie; None when they are beside the graph.

    Raises:
        BundleError: TensorRT refuses the graph, or drops one of its inputs.
    """
    trt = load_tensorrt()
    log = _new_log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    # The parser looks for weights beside the file of this name; it need not exist.
    named = str((weights_dir or path.parent) / path.name)
    if not parser.parse(path.read_bytes(), named):
        errors = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        raise _failure(path, errors or log.lines)
    config = builder.create_builder_config()
    if gpu is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(_compute_capability(trt, gpu), 0)
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


def _new_log(trt: ModuleType) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc,name-defined]
        """Keeps warnings and errors."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.WARNING:
                self.lines.append(message)

    return Log()


def _compute_capability(trt: ModuleType, gpu: str) -> Any:
    try:
        return getattr(trt.ComputeCapability, gpu)
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
