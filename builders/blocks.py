"""How quantized weights stand in a graph: signed integers [in, out], a scale per block of input features.

That is standard `DequantizeLinear`, which TensorRT reads if there are no zero points; for ONNX Runtime it
becomes part of the product that follows (`fused_products`). Weights that the builder rounds, but for
8 bits on TensorRT, and those of checkpoints that are quantized already have this form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from builders.packed import PackedLinear
from python_backend.errors import BundleError

INTEGERS = {4: ir.DataType.INT4, 8: ir.DataType.INT8}
"""Dtype of integers, and of zero points, by their bits."""


def block_attributes(block_size: int) -> dict[str, int]:
    """Attributes of the `DequantizeLinear` over integers [in, out]."""
    return {"axis": 0, "block_size": block_size}


def use_packed(
    graph: ir.Graph,
    checkpoint_names: Callable[[str], tuple[str, ...]],
    packed: Mapping[str, PackedLinear],
) -> int:
    """Put quantized layers where the graph has a whole matrix [in, out].

    Args:
        graph: built from modules; the layers' integers and scales are read when it is written.
        checkpoint_names: from a weight's path to the names it may have in the checkpoint.
        packed: the layers that the checkpoint has quantized, by the names of their weights.

    Returns:
        How many there are in this graph.

    Raises:
        BundleError: one has another shape, or is something other than a linear layer.
    """
    layers = [
        (weight, packed[name])
        for path, weight in graph.initializers.items()
        for name in checkpoint_names(path)
        if name in packed
    ]
    for weight, layer in layers:
        _replace(graph, weight, layer)
    return len(layers)


def _replace(graph: ir.Graph, weight: ir.Value, layer: PackedLinear) -> None:
    name, users = str(weight.name), [node for node, _ in weight.uses()]
    if any(user.op_type != "MatMul" for user in users):
        raise BundleError(
            f"the checkpoint has {name} quantized; only linear layers are read so: give a checkpoint that "
            "leaves it out, or the unquantized one and --precision int8 or int4"
        )
    shape = [] if weight.shape is None else list(weight.shape.numpy())
    if shape != list(layer.shape):
        raise BundleError(
            f"tensor {name} is packed from {list(layer.shape)}, the config asks for {shape}: config.json "
            "and weights do not belong together"
        )
    integers, num_blocks = INTEGERS[layer.bits], -(-layer.shape[0] // layer.block_size)
    blocks = [num_blocks, layer.shape[1]]
    assert weight.dtype is not None
    inputs = [
        _initializer(graph, f"{name}.integers", shape, integers, layer.integers),
        _initializer(graph, f"{name}.scales", blocks, weight.dtype, layer.scales),
    ]
    if layer.zero_points is not None:
        zeros = layer.zero_points
        inputs.append(_initializer(graph, f"{name}.zero_points", blocks, integers, lambda: zeros))
    del graph.initializers[name]
    node = ir.node(
        "DequantizeLinear",
        inputs,
        block_attributes(layer.block_size),
        outputs=[ir.Value(name=name, shape=weight.shape, type=weight.type)],
    )
    graph.insert_before(users[0], node)
    ir.convenience.replace_all_uses_with(weight, node.outputs[0])


def _initializer(
    graph: ir.Graph,
    name: str,
    shape: list[int],
    dtype: ir.DataType,
    read: Callable[[], np.ndarray],
) -> ir.Value:
    def tensor() -> ir.TensorProtocol:
        return ir.tensor(np.ascontiguousarray(read().astype(dtype.numpy())), dtype)

    lazy = ir.LazyTensor(tensor, dtype=dtype, shape=ir.Shape(shape), name=name)
    value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype), const_value=lazy)
    graph.register_initializer(value)
    return value
