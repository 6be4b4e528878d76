"""Products as the builder writes them for ONNX Runtime are those that it makes of the standard operators."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders.blocks import INTEGERS, block_attributes
from builders.fused_products import ROUND_ACTIVATIONS, fuse_products


def _initializer(name: str, array: np.ndarray, dtype: ir.DataType) -> ir.Value:
    return ir.val(name, const_value=ir.tensor(array.astype(dtype.numpy()), dtype, name=name))


def _graph(
    num_in: int,
    num_out: int,
    bits: int,
    block_size: int,
    *,
    has_zero_points: bool = False,
    has_bias: bool = False,
    num_products: int = 1,
) -> ir.Graph:
    """Products of inputs x0, x1, ... with one weight, to outputs y0, y1, ..."""
    rng = np.random.default_rng([num_in, num_out, bits, block_size])
    middle, dtype = 1 << bits - 1, INTEGERS[bits]
    blocks = (-(-num_in // block_size), num_out)
    integers = rng.integers(-middle, middle, (num_in, num_out))
    weight = [
        _initializer("weight", integers, dtype),
        _initializer("scales", rng.normal(0, 0.1, blocks), ir.DataType.FLOAT),
    ]
    if has_zero_points:
        weight.append(_initializer("zeros", rng.integers(-middle, middle, blocks), dtype))
    bias = _initializer("bias", rng.normal(0, 1, num_out), ir.DataType.FLOAT)
    inputs, outputs, nodes = [], [], []
    for i in range(num_products):
        inputs.append(ir.val(f"x{i}", ir.DataType.FLOAT, ["B", "S", num_in]))
        restore = ir.node("DequantizeLinear", weight, block_attributes(block_size))
        product = ir.node("MatMul", [inputs[-1], restore.outputs[0]])
        nodes += [restore, product]
        if has_bias:
            nodes.append(ir.node("Add", [product.outputs[0], bias]))
        outputs.append(nodes[-1].outputs[0])
        outputs[-1].name, outputs[-1].type = f"y{i}", ir.TensorType(ir.DataType.FLOAT)
    return ir.Graph(
        inputs,
        outputs,
        nodes=nodes,
        initializers=[*weight, bias] if has_bias else weight,
        opset_imports={"": 24},
        name="products",
    )


def _run(graph: ir.Graph) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(
        "session.qdq_matmulnbits_accuracy_level", str(ROUND_ACTIVATIONS)
    )
    model = ir.to_proto(ir.Model(graph, ir_version=11)).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    feeds = {
        value.name: rng.normal(0, 1, (2, 3, value.shape[2])).astype(np.float32)
        for value in session.get_inputs()
    }
    return list(session.run(None, feeds))


@settings(max_examples=60, deadline=None)
@given(
    num_in=st.integers(1, 300),
    num_out=st.integers(1, 40),
    bits=st.sampled_from([4, 8]),
    block_size=st.sampled_from([32, 64, 128]),
    has_zero_points=st.booleans(),
    has_bias=st.booleans(),
)
def test_fused_products_give_the_same_numbers_to_the_bit(**shape):
    fused = _graph(**shape)
    assert fuse_products(fused) == 1
    assert [node.op_type for node in fused] == ["MatMulNBits"]
    (expected,), (found,) = _run(_graph(**shape)), _run(fused)
    np.testing.assert_array_equal(found, expected)


def test_a_weight_of_two_products_is_packed_once():
    graph = _graph(64, 8, 4, 32, has_zero_points=True, num_products=2)
    assert fuse_products(graph) == 2
    assert sorted(graph.initializers) == ["scales", "weight", "zeros"]
    (expected,), (found, other) = _run(_graph(64, 8, 4, 32, has_zero_points=True)), _run(graph)
    np.testing.assert_array_equal(found, expected)
    assert not np.array_equal(other, expected)  # of another input


def test_weights_are_packed_when_they_are_written():
    def read() -> ir.TensorProtocol:
        raise AssertionError("read too early")

    graph = _graph(64, 8, 4, 32)
    dtype = ir.DataType.INT4
    graph.initializers["weight"].const_value = ir.LazyTensor(read, dtype, ir.Shape([64, 8]))
    fuse_products(graph)
    assert graph.initializers["weight"].const_value.nbytes == 64 * 8 // 2
    with pytest.raises(AssertionError, match="read too early"):
        graph.initializers["weight"].const_value.numpy()


def test_other_products_stay():
    x, weight = ir.val("x", ir.DataType.FLOAT, ["M", 4]), ir.val("w")
    weight.const_value = ir.tensor(np.ones((4, 2), np.float32), name="w")
    product = ir.node("MatMul", [x, weight])
    graph = ir.Graph([x], product.outputs, nodes=[product], initializers=[weight], name="g")
    assert fuse_products(graph) == 0
    assert [node.op_type for node in graph] == ["MatMul"]
    assert "com.microsoft" not in graph.opset_imports
