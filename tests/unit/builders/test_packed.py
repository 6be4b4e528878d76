"""Quantized layers are read exactly as the authors of their formats read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from safetensors.numpy import load_file, save_file

from builders import fused_products
from builders.blocks import use_packed
from builders.checkpoint import Checkpoint
from builders.fused_products import fuse_products
from builders.packed import PackedLinear, packed_format, packed_linears
from python_backend.errors import BundleError

# Written by make_golden_packed.py from AutoAWQ, AutoGPTQ and compressed-tensors.
TENSORS = load_file(Path(__file__).with_name("golden_packed.safetensors"))
CASES = sorted({name.rpartition("/")[0] for name in TENSORS})
COMPRESSED = {
    "format": "pack-quantized",
    "config_groups": {
        "group_0": {"weights": {"num_bits": 4, "strategy": "group", "symmetric": False}}
    },
}
CONFIGS = {
    "awq": ("awq", {}),
    "gptq": ("gptq", {"bits": 4}),
    "gptq_v2": ("gptq", {"bits": 4, "checkpoint_format": "gptq_v2"}),
    "compressed-tensors": ("compressed-tensors", COMPRESSED),
}


def golden(case: str) -> dict[str, np.ndarray]:
    return {
        name.rpartition("/")[2]: tensor
        for name, tensor in TENSORS.items()
        if name.startswith(f"{case}/")
    }


@pytest.fixture
def read(tmp_path: Path) -> Callable[[str, Mapping[str, np.ndarray]], PackedLinear]:
    """From a case and the tensors of its layer to the layer."""

    def read_layer(case: str, layer: Mapping[str, np.ndarray]) -> PackedLinear:
        tensors = {f"layer.{name}": tensor for name, tensor in layer.items() if name != "weight"}
        save_file(tensors, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text("{}")
        packing = packed_format(*CONFIGS[case.split(" ")[0]])
        linears = packed_linears(Checkpoint(tmp_path), packing)
        assert list(linears) == ["layer.weight"]
        return linears["layer.weight"]

    return read_layer


@pytest.mark.parametrize("case", CASES)
def test_weights_are_those_of_the_formats_authors(read, case):
    layer = golden(case)
    np.testing.assert_array_equal(read(case, layer).dequantized(), layer["weight"])


@pytest.mark.parametrize("case", CASES)
def test_scales_are_those_of_the_checkpoint(read, case):
    layer = golden(case)
    stored = layer["weight_scale"].T if "weight_scale" in layer else layer["scales"]
    scales = read(case, layer).scales()
    assert scales.dtype == np.float16
    whole_rows = "whole rows" in case
    assert (len(stored) == 1) == whole_rows
    expected = np.broadcast_to(stored, scales.shape) if whole_rows else stored
    np.testing.assert_array_equal(scales, expected)


@pytest.mark.parametrize("case", CASES)
def test_there_are_no_zero_points_where_zero_is_in_the_middle(read, case):
    assert (read(case, golden(case)).zero_points is None) == ("symmetric" in case)


@pytest.mark.parametrize("is_fused", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_graph_computes_with_integers_as_one_fused_product(
    read, tmp_path, monkeypatch, case, is_fused
):
    """A block of any size, with zero points or without: ONNX Runtime never has the whole matrix."""
    layer = read(case, golden(case))
    num_in, num_out = layer.shape
    x = ir.val("x", ir.DataType.FLOAT, ["M", num_in])
    weight = ir.val("weight", const_value=ir.tensor(np.zeros(layer.shape, np.float32)))
    y = ir.val("y", ir.DataType.FLOAT, ["M", num_out])
    graph = ir.Graph(
        [x],
        [y],
        nodes=[ir.node("MatMul", [x, weight], outputs=[y])],
        initializers=[weight],
        opset_imports={"": 24},
        name="linear",
    )
    assert use_packed(graph, lambda path: (path,), {"weight": layer}) == 1
    if is_fused:
        monkeypatch.setattr(fused_products, "ROUND_ACTIVATIONS", 1)
        assert fuse_products(graph) == 1
        assert [node.op_type for node in graph] == ["MatMulNBits"]
    path = tmp_path / "linear.onnx"
    ir.save(ir.Model(graph, ir_version=11), path)
    onnx.checker.check_model(str(path))
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (node,) = onnx.load(tmp_path / "optimized.onnx").graph.node
    assert node.op_type == "MatMulNBits"
    (weights,) = session.run(None, {"x": np.eye(num_in, dtype=np.float32)})
    np.testing.assert_allclose(weights.T, layer.dequantized(), rtol=1e-5, atol=1e-5)


def test_zero_points_of_older_compressed_tensors_are_bytes(read):
    case = "compressed-tensors 4 bits"
    layer = golden(case)
    packed = read(case, layer).zero_points
    assert packed is not None
    layer["weight_zero_point"] = packed.T.copy()
    np.testing.assert_array_equal(read(case, layer).dequantized(), layer["weight"])


def test_order_that_says_what_is_so_anyway_may_be_missing_or_empty(read):
    case = "gptq 4 bits"
    layer = golden(case)
    layer["g_idx"] = np.empty(0, np.int32)
    np.testing.assert_array_equal(read(case, layer).dequantized(), layer["weight"])
    del layer["g_idx"]
    np.testing.assert_array_equal(read(case, layer).dequantized(), layer["weight"])


@pytest.mark.parametrize(
    ("case", "name"),
    [("gptq 4 bits", "g_idx"), ("compressed-tensors 4 bits", "weight_g_idx")],
)
def test_activation_order_is_refused_by_name(read, case, name):
    layer = golden(case)
    num_in = layer["weight"].shape[1]
    layer[name] = np.random.default_rng(0).permutation(num_in).astype(np.int32) // 32
    with pytest.raises(BundleError, match=rf"layer\.{name} .* activation order \(desc_act\)"):
        read(case, layer)


@pytest.mark.parametrize("case", [case for case in CASES if "symmetric" not in case])
@pytest.mark.parametrize(
    "damage", [lambda t: t[..., :-1], lambda t: t.astype(np.float32), lambda t: t.ravel()]
)
def test_tensors_that_do_not_fit_each_other_are_refused(read, case, damage):
    layer = golden(case)
    name = "weight_packed" if "weight_packed" in layer else "qweight"
    layer[name] = np.ascontiguousarray(damage(layer[name]))
    with pytest.raises(BundleError, match="does not fit its other tensors"):
        read(case, layer)


def test_groups_of_another_size_are_refused(read):
    layer = golden("awq groups of 32")
    layer["qzeros"], layer["scales"] = layer["qzeros"][:2], layer["scales"][:2]
    with pytest.raises(BundleError, match=r"layer has 2 scales for 96 input features; read are"):
        read("awq", layer)


def test_config_that_promises_packed_layers_that_are_not_there_is_refused(read):
    layer = golden("awq whole rows")
    layer["qweigh"] = layer.pop("qweight")
    with pytest.raises(BundleError, match=r"says awq, but no tensor is named \*\.qweight"):
        read("awq", layer)
