"""From a `GraphSpec` to an empty graph, and from a filled graph to files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import onnx_ir as ir
from onnxscript import GraphBuilder

from python_backend.spec import GraphSpec

OPSET = 24
"""First opset with TensorScatter and Attention over an external cache; TensorRT's parser stops there."""

_DTYPES = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
    "int64": ir.DataType.INT64,
    "int32": ir.DataType.INT32,
    "bool": ir.DataType.BOOL,
}

Progress = Callable[[str, int, int], None]
"""Called with (what, bytes done, bytes in all)."""


def new_graph(spec: GraphSpec) -> GraphBuilder:
    """A builder for an empty graph named after `spec`."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET}, name=spec.name)
    return GraphBuilder(graph)


def declare_inputs(
    builder: GraphBuilder, spec: GraphSpec, compute: ir.DataType
) -> dict[str, ir.Value]:
    """Declare the inputs of `spec`; returns name to value, in `compute` what the host feeds as float32."""
    values = {
        tensor.name: builder.input(tensor.name, _DTYPES[tensor.dtype], list(tensor.shape))
        for tensor in spec.inputs
    }
    if compute != ir.DataType.FLOAT:
        for tensor in spec.inputs:
            if tensor.dtype == "float32":
                values[tensor.name] = builder.op.Cast(values[tensor.name], to=compute)
    return values


def declare_outputs(builder: GraphBuilder, spec: GraphSpec, values: Sequence[ir.Value]) -> None:
    """Declare `values` as the outputs of `spec`, in order."""
    for tensor, value in zip(spec.outputs, values, strict=True):
        value.shape, value.dtype = ir.Shape(tensor.shape), _DTYPES[tensor.dtype]
        builder.add_output(value, tensor.name)


def to_model(builder: GraphBuilder, onnx_functions: Sequence[ir.Function] = ()) -> ir.Model:
    """The model around the finished graph, without the builder's scope notes (half of the file)."""
    for node in builder.graph:
        node.metadata_props.clear()
    for function in onnx_functions:
        builder.graph.opset_imports[function.domain] = 1
    return ir.Model(
        builder.graph, ir_version=11, functions=onnx_functions, producer_name="triton-vlm"
    )


def write_graph(model: ir.Model, path: Path, progress: Progress | None = None) -> None:
    """Write `model` to `path` and its weights to `path` + `.data`, one tensor at a time."""
    tensors = [
        v.const_value for v in model.graph.initializers.values() if v.const_value is not None
    ]
    total, done = sum(tensor.nbytes for tensor in tensors), 0

    def report(tensor: ir.TensorProtocol, _info: object) -> None:
        nonlocal done
        done += tensor.nbytes
        if progress is not None:
            progress(path.name, done, total)

    ir.save(
        model,
        path,
        external_data=path.name + ".data",
        size_threshold_bytes=_INLINE_BYTES,
        callback=report,
        max_workers=1,  # one tensor in memory at a time
        alignment=4096,  # ONNX Runtime maps the pages instead of copying them
    )


_INLINE_BYTES = 1024
