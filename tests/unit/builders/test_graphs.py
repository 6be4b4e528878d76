"""What the graph files hold: exactly their contract, and weights where the precision says."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from builders.families import family_graphs
from builders.families.base import BuildLimits
from builders.graph import write_graph
from builders.modules import fill_weights
from builders.options import BuildOptions
from builders.pipeline import build
from builders.precision import Precision
from builders.source import open_source
from builders.verify import ROUNDED_TOLERANCE
from tests.tiny.shapes import GRAPHS

FLOATS = [ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16]


def _tensors(values):
    return [
        (
            value.name,
            TensorProto.DataType.Name(value.type.tensor_type.elem_type),
            tuple(d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim),
        )
        for value in values
    ]


def _declared(specs):
    names = {"float32": "FLOAT", "float16": "FLOAT16"}
    return [(s.name, names.get(s.dtype, s.dtype.upper()), s.shape) for s in specs]


def test_file_has_exactly_the_inputs_and_outputs_of_the_manifest(tiny):
    manifest = tiny.model.manifest
    for graph in manifest.graphs:
        file = onnx.load(tiny.model.path(graph), load_external_data=False)
        assert _tensors(file.graph.input) == _declared(graph.spec.inputs)
        assert _tensors(file.graph.output) == _declared(graph.spec.outputs)
        onnx.checker.check_model(str(tiny.model.path(graph)))


def _write(tiny, folder: Path, name: str, precision: Precision):
    """(path, spec) of one graph of the tiny checkpoint."""
    source = open_source(str(tiny.checkpoint))
    graphs = family_graphs(tiny.shape.model_type)(source.config)
    limits = BuildLimits(max_model_len=64, max_images=2)
    if name == "vision_encoder":
        model, spec = graphs.vision_encoder(precision)
    elif name == "decoder":
        model, spec = graphs.decoder(precision, limits)
    else:
        built = graphs.cross_attention(precision, limits)
        if built is None:
            pytest.skip("no cross-attention")
        model, spec = built
    fill_weights(model.graph, source.checkpoint, graphs.checkpoint_names)
    path = folder / f"{name}.onnx"
    write_graph(model, path)
    return path, spec


@pytest.mark.parametrize(("shape", "name"), GRAPHS)
@pytest.mark.parametrize("compute", FLOATS)
def test_weights_lie_beside_the_graph_in_the_format_of_the_computation(
    tiny_models, tmp_path, shape, name, compute
):
    path, spec = _write(tiny_models(shape), tmp_path, name, Precision(compute=compute))
    file = onnx.load(path, load_external_data=False)
    assert _tensors(file.graph.input) == _declared(spec.inputs)
    assert _tensors(file.graph.output) == _declared(spec.outputs)
    weights = [t for t in file.graph.initializer if uses_external_data(t)]
    assert {ExternalDataInfo(t).location for t in weights} == {f"{path.name}.data"}
    formats = {t.data_type for t in weights}
    assert formats - {TensorProto.INT64} == {compute.value}  # integers: tables of positions
    assert path.stat().st_size < 1_000_000


def test_tokens_without_logits_skip_the_last_products(tied):
    nodes = onnx.load(
        tied.model.path(tied.model.manifest.decoder), load_external_data=False
    ).graph.node
    last = f"model.layers.{tied.shape.num_layers - 1}"
    places = {name: i for i, node in enumerate(nodes) for name in (node.op_type, *node.input)}
    taken = places["GatherND"]  # the last one
    assert places[f"{last}.self_attn.v_proj.weight"] < taken
    for name in ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"):
        assert taken < places[f"{last}.{name}.weight"]


@pytest.fixture(scope="module", params=["int8", "int4"])
def quantized(request, tiny, tmp_path_factory):
    """The tiny model with quantized weights, verified by the build itself."""
    from tests.conftest import MAX_MODEL_LEN, SilentReport

    options = BuildOptions(
        model=str(tiny.checkpoint),
        output=tmp_path_factory.mktemp(request.param),
        precision=request.param,
        max_model_len=MAX_MODEL_LEN,
    )
    return build(options, SilentReport())[0]


def test_quantized_model_is_near_the_reference_with_the_same_rounded_weights(quantized):
    verification = quantized.manifest.verification
    assert quantized.manifest.precision in verification["reference"]
    # Above: the reference is not what was rounded. Below: nothing was rounded.
    assert 1e-3 < verification["logits_error"] < ROUNDED_TOLERANCE
    if quantized.manifest.sees_images:
        assert 1e-3 < verification["embeds_error"] < ROUNDED_TOLERANCE


def _optimized_ops(path, folder):
    """What ONNX Runtime makes of a graph."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(folder / "optimized.onnx", load_external_data=False).graph.node
    return [node.op_type for node in nodes]


def test_every_linear_layer_of_a_quantized_decoder_runs_as_matmul_nbits(quantized, tiny, tmp_path):
    manifest, num_cross = quantized.manifest, tiny.shape.num_cross_layers
    ops = _optimized_ops(quantized.path(manifest.decoder), tmp_path)
    # q k v o gate up down, head; keys and values of images have a graph of their own
    assert ops.count("MatMulNBits") == 7 * tiny.shape.num_layers - 2 * num_cross + 1
    assert "MatMul" not in ops
    # The rows taken from the embedding table: once for each operator that reads them, which are two
    # where no image embeddings are merged into them.
    assert ops.count("DequantizeLinear") == (2 if num_cross else 1)
    if manifest.cross_attention is not None:
        ops = _optimized_ops(quantized.path(manifest.cross_attention), tmp_path)
        assert ops.count("MatMulNBits") == 2 * num_cross
        assert "MatMul" not in ops


def test_int4_is_of_mlps_and_all_others_have_8_bits(quantized):
    manifest = quantized.manifest
    graphs = [manifest.vision_encoder, manifest.decoder, manifest.cross_attention]
    products = [
        node
        for graph in graphs
        if graph is not None
        for node in onnx.load(quantized.path(graph), load_external_data=False).graph.node
        if node.op_type == "MatMulNBits"
    ]
    bits = {
        node.input[1]: attribute.i
        for node in products
        for attribute in node.attribute
        if attribute.name == "bits"
    }
    of_4_bits = {name for name, value in bits.items() if value == 4}
    of_mlps = {name for name in bits if ".mlp." in name and name.startswith("model.")}
    assert of_4_bits == (of_mlps if manifest.precision == "int4" else set())
    assert set(bits.values()) - {4} == {8}


def test_every_linear_layer_of_a_quantized_tower_runs_as_matmul_nbits(quantized, tmp_path):
    if not quantized.manifest.sees_images:
        pytest.skip("reads text only")
    path = quantized.path(quantized.manifest.vision_encoder)
    initializers = onnx.load(path, load_external_data=False).graph.initializer
    rounded = [t.name for t in initializers if t.data_type == TensorProto.UINT8]
    whole = [
        t.name
        for t in initializers
        if len(t.dims) == 2 and t.data_type == TensorProto.FLOAT and t.name.endswith("proj.weight")
    ]
    ops = _optimized_ops(path, tmp_path)
    assert ops.count("MatMulNBits") == len(rounded) > 0
    assert "DequantizeLinear" not in ops
    assert whole in ([], ["visual.patch_embed.proj.weight"])


def test_quantized_decoder_is_smaller(quantized, tiny):
    def num_bytes(model):
        return sum(f.stat().st_size for f in model.path(model.manifest.decoder).parent.iterdir())

    assert num_bytes(quantized) < 0.45 * num_bytes(tiny.model)
