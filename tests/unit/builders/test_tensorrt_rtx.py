"""Real TensorRT-RTX engines of the tiny model: building needs no GPU, running them does."""

from __future__ import annotations

import dataclasses
import re
from functools import cache

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, save
from safetensors.numpy import save_file

from builders.blocks import use_packed
from builders.checkpoint import Checkpoint
from builders.families import family_graphs
from builders.families.base import BuildLimits
from builders.graph import declare_inputs, declare_outputs, new_graph, to_model, write_graph
from builders.modules import Linear, fill_weights
from builders.options import BuildOptions
from builders.pipeline import build
from builders.precision import Precision
from builders.profiles import cross_profile, decoder_profiles
from builders.source import open_source
from builders.trt_engine import engine_from_onnx
from builders.verify import ROUNDED_TOLERANCE
from python_backend.errors import BundleError
from python_backend.spec import GraphSpec, TensorSpec
from tests.tiny.packing import PACKINGS, pack_checkpoint
from tests.tiny.shapes import SHAPES

pytest.importorskip("tensorrt_rtx_bindings")

VISION_PROFILE = {
    "P": (1, 1, 4),
    "N": (4, 64, 256),
    "W": (1, 4, 32),
    "G": (1, 1, 4),
    "L": (4, 64, 256),
    "T": (1, 2, 8),
    "M": (1, 32, 256),
}
MAX_SEQS, MAX_CHUNK = 4, 32
FAMILIES = list({shape.model_type: shape.name for shape in reversed(SHAPES.values())}.values())
GRAPHS = [
    (family, name, precision)
    for family in FAMILIES
    for name, precisions in (
        ("vision_encoder", ["bf16", "fp16"]),  # whose weights are never quantized
        ("decoder", ["bf16", "fp16", "int4"]),
    )
    for precision in precisions
    if name == "decoder" or SHAPES[family].sees_images
]


@pytest.fixture(scope="module")
def written_graph(tied, tmp_path_factory):
    """From graph name, precision and, if not the usual one, a checkpoint to (path, spec)."""

    @cache
    def make(name, precision, checkpoint=tied.checkpoint):
        source = open_source(str(checkpoint))
        graphs = family_graphs(source.config["model_type"])(source.config)
        limits = BuildLimits(max_model_len=128, max_images=2)
        if name == "decoder":
            model, spec = graphs.decoder(precision, limits)
        elif name == "cross_attention":
            model, spec = graphs.cross_attention(precision, limits)
        else:
            model, spec = graphs.vision_encoder(precision)
        use_packed(model.graph, graphs.checkpoint_names, source.packed)
        fill_weights(model.graph, source.checkpoint, graphs.checkpoint_names)
        path = tmp_path_factory.mktemp("written") / f"{name}.onnx"
        write_graph(model, path)
        return path, spec

    return make


@pytest.mark.parametrize("gpu", ["sm80", "sm89", "sm120"])
@pytest.mark.parametrize(("family", "name", "precision"), GRAPHS)
def test_graphs_of_every_family_become_engines_for_every_gpu(
    tiny_models, written_graph, family, name, precision, gpu
):
    checkpoint = tiny_models(family).checkpoint
    path, spec = written_graph(name, Precision.for_gpu(precision), checkpoint)
    profiles = decoder_profiles(MAX_SEQS, MAX_CHUNK, 128) if name == "decoder" else [VISION_PROFILE]
    engine = engine_from_onnx(path, spec, profiles, gpu=gpu)
    assert len(engine) > 50_000
    names = [tensor.name for tensor in (*spec.inputs, *spec.outputs)]
    assert [n for n in names if n.encode() not in engine] == []


@pytest.mark.parametrize("gpu", ["sm80", "sm89", "sm120"])
def test_graph_that_fills_the_images_of_a_row_becomes_an_engine(tiny_models, written_graph, gpu):
    checkpoint = tiny_models("tiny-mllama").checkpoint
    path, spec = written_graph("cross_attention", Precision.for_gpu("bf16"), checkpoint)
    profile = cross_profile(spec)
    engine = engine_from_onnx(path, spec, [profile], gpu=gpu)
    names = [tensor.name for tensor in (*spec.inputs, *spec.outputs)]
    assert [n for n in names if n.encode() not in engine] == []


@pytest.mark.parametrize("gpu", ["sm80", "sm89", "sm120"])
@pytest.mark.parametrize("precision", ["fp8", "int8"])
def test_weights_of_8_bits_become_an_engine_for_every_gpu(written_graph, precision, gpu):
    path, spec = written_graph("decoder", Precision.for_gpu(precision))
    profiles = decoder_profiles(MAX_SEQS, MAX_CHUNK, 128)
    if (precision, gpu) == ("fp8", "sm80"):  # which the options refuse before anything is built
        with pytest.raises(BundleError, match="fp8_e4m3"):
            engine_from_onnx(path, spec, profiles, gpu=gpu)
        return
    engine = engine_from_onnx(path, spec, profiles, gpu=gpu)
    names = [tensor.name for tensor in (*spec.inputs, *spec.outputs)]
    assert [n for n in names if n.encode() not in engine] == []


NUM_IN, NUM_OUT = 512, 2048


@pytest.fixture
def layer_engine(tmp_path):
    """From a precision and a GPU to the engine of one linear layer."""

    def build_layer(precision, gpu):
        rng = np.random.default_rng(0)
        weight = rng.normal(0, 0.02, (NUM_OUT, NUM_IN)).astype(np.float32)
        save_file({"weight": weight}, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text("{}")
        dtype = precision.compute.numpy().name
        inputs = (TensorSpec("x", dtype, ("B", NUM_IN)),)
        spec = GraphSpec("layer", inputs, (TensorSpec("y", dtype, ("B", NUM_OUT)),), {})
        builder = new_graph(spec)
        feeds = declare_inputs(builder, spec, precision.compute)
        layer = Linear(precision, NUM_IN, NUM_OUT)
        declare_outputs(builder, spec, [layer(builder.op, feeds["x"])])
        model = to_model(builder)
        fill_weights(model.graph, Checkpoint(tmp_path), lambda path: (path.lstrip("."),))
        write_graph(model, tmp_path / "layer.onnx")
        profiles = [{"B": (1, 8, 16)}, {"B": (1, 512, 512)}]
        return engine_from_onnx(tmp_path / "layer.onnx", spec, profiles, gpu=gpu)

    return build_layer


@pytest.mark.parametrize("gpu", ["sm89", "sm120"])
@pytest.mark.parametrize(
    ("precision", "num_bytes"), [("bf16", 2), ("fp8", 1), ("int8", 1), ("int4", 0.5 + 2 / 128)]
)
def test_weights_keep_their_bits_in_the_engine(layer_engine, precision, num_bytes, gpu):
    engine = layer_engine(Precision.for_gpu(precision), gpu)
    weights = num_bytes * NUM_IN * NUM_OUT
    assert weights < len(engine) < weights + 100_000


# TensorRT-RTX names kernels by what they compute: here a dequantization and the product (Fc) in one.
FUSED = re.compile(rb"name=__myl_\w*CastMulCastFc ")


@pytest.mark.parametrize("precision", ["fp8", "int8", "int4"])
def test_weights_are_dequantized_inside_the_product(layer_engine, precision):
    """And not as whole matrices in memory, which costs more than weights of 16 bits do."""
    engine = layer_engine(Precision.for_gpu(precision), "sm89")
    assert len(FUSED.findall(engine)) == 2  # profiles


def test_a_gpu_without_8_bit_floats_is_refused_before_anything_is_built():
    options = {"model": "m", "engine": "tensorrt_rtx", "precision": "fp8"}
    with pytest.raises(BundleError, match=r"^sm86 has no 8-bit floats.*--precision int8$"):
        BuildOptions(**options, gpus=("sm89", "sm86"))
    assert BuildOptions(**options, gpus=("sm89", "sm120")).targets == ("sm89", "sm120")


@pytest.mark.parametrize("packing", ["gptq", "compressed-tensors"])
def test_symmetric_quantized_checkpoint_becomes_an_engine(tied, written_graph, tmp_path, packing):
    checkpoint, _ = pack_checkpoint(tied.checkpoint, tmp_path, PACKINGS[packing])
    path, spec = written_graph("decoder", Precision.for_gpu("bf16"), checkpoint)
    engine = engine_from_onnx(path, spec, decoder_profiles(MAX_SEQS, MAX_CHUNK, 128), gpu="SM89")
    names = [tensor.name for tensor in (*spec.inputs, *spec.outputs)]
    assert [n for n in names if n.encode() not in engine] == []


def test_zero_points_of_a_quantized_checkpoint_are_refused_with_the_reason(
    tied, written_graph, tmp_path
):
    """The builder says so before, by config.json; this is what TensorRT says."""
    checkpoint, _ = pack_checkpoint(tied.checkpoint, tmp_path, PACKINGS["awq"])
    path, spec = written_graph("decoder", Precision.for_gpu("bf16"), checkpoint)
    with pytest.raises(BundleError, match="Non-zero zero point is not supported"):
        engine_from_onnx(path, spec, decoder_profiles(MAX_SEQS, MAX_CHUNK, 128), gpu="SM89")


@pytest.mark.parametrize(
    ("precision", "tolerance"),
    [
        # ONNX Runtime rounds the activations of integer weights to 8 bits: of fp8, those of the head.
        ("int4", ROUNDED_TOLERANCE),
        ("fp8", 0.02),
    ],
)
def test_a_build_for_several_gpus_has_an_engine_for_each_and_what_it_cost(
    tied, tmp_path, report, precision, tolerance
):
    options = BuildOptions(
        model=str(tied.checkpoint),
        output=tmp_path,
        max_model_len=128,
        engine="tensorrt_rtx",
        precision=precision,
        gpus=("sm89", "sm120"),
    )
    model, results = build(options, report)
    # The same graphs, computed in fp32, against Hugging Face with the same weights.
    assert max(result.logits_error for result in results) < tolerance
    verification = model.manifest.verification
    assert verification["reference"].endswith(f"weights rounded to {precision}")
    assert verification["engines"] == {"sm89": "not run", "sm120": "not run"}
    assert "no engine was run: they are for sm89, sm120" in "\n".join(report.notes)
    for graph in (model.manifest.vision_encoder, model.manifest.decoder):
        assert list(graph.paths) == ["sm89", "sm120"]
        for gpu in options.gpus:
            size = model.path(graph, gpu).stat().st_size
            assert graph.costs[gpu]["engine_bytes"] == size
            assert graph.costs[gpu]["peak_bytes"] > size
            assert graph.costs[gpu]["seconds"] > 0
            assert f"{graph.spec.name} for {gpu}" in "\n".join(report.notes)
        names = {path.name for path in model.path(graph, "sm89").parent.iterdir()}
        assert names == {"model.py", *(model.path(graph, gpu).name for gpu in options.gpus)}
    config = (tmp_path / f"{model.manifest.name}-encoder" / "config.pbtxt").read_text()
    assert "max_batch_size: 16" in config
    report.notes.clear()
    build(options, report)
    assert report.notes == ["nothing has changed since the last build"]


def test_decoder_profiles_pin_decode_to_one_token_and_prefill_to_one_row():
    decode, prefill = decoder_profiles(MAX_SEQS, MAX_CHUNK, 128)
    assert decode["S"] == (1, 1, 1)
    assert (decode["B"][0], decode["B"][2]) == (1, MAX_SEQS)
    assert prefill["B"] == (1, 1, 1)
    assert (prefill["S"][0], prefill["S"][2]) == (1, MAX_CHUNK)
    assert prefill["I"][2] == 128  # a chunk is given the embeddings of its whole prompt


def test_an_input_that_tensorrt_drops_is_an_error(tmp_path):
    """ONNX's own Attention takes lengths; TensorRT parses it and ignores them."""
    cache, shape = [1, 2, 64, 32], ["B", 2, "S", 32]
    node = helper.make_node("Attention", ["q", "k", "v", "", "", "", "lengths"], ["y"], is_causal=1)
    half = TensorProto.FLOAT16
    inputs = [
        helper.make_tensor_value_info("q", half, shape),
        helper.make_tensor_value_info("k", half, cache),
        helper.make_tensor_value_info("v", half, cache),
        helper.make_tensor_value_info("lengths", TensorProto.INT64, ["B"]),
    ]
    output = helper.make_tensor_value_info("y", half, shape)
    graph = helper.make_graph([node], "dropped", inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)
    save(model, tmp_path / "dropped.onnx")
    spec = GraphSpec(
        "dropped",
        (
            TensorSpec("q", "float16", tuple(shape)),
            TensorSpec("k", "float16", tuple(cache)),
            TensorSpec("v", "float16", tuple(cache)),
            TensorSpec("lengths", "int64", ("B",)),
        ),
        (TensorSpec("y", "float16", tuple(shape)),),
        {},
    )
    profile = {"B": (1, 1, 1), "S": (1, 1, 1)}
    with pytest.raises(BundleError, match="Unused Input"):
        engine_from_onnx(tmp_path / "dropped.onnx", spec, [profile], gpu="SM89")


def test_a_graph_that_tensorrt_refuses_is_an_error_with_its_reason(written_graph):
    """fp32 has no fused attention."""
    path, spec = written_graph("decoder", Precision(compute=ir.DataType.FLOAT))
    with pytest.raises(BundleError, match="dedicated kernel"):
        engine_from_onnx(path, spec, decoder_profiles(1, 8, 128), gpu="SM89")


@pytest.mark.parametrize("weight_bits", [8, 4])
def test_weights_quantized_for_the_cpu_are_refused_with_the_reason(written_graph, weight_bits):
    """Their scales carry a sign, which ONNX Runtime reads and TensorRT does not."""
    precision = Precision(compute=ir.DataType.FLOAT16, weight_bits=weight_bits)
    path, spec = written_graph("decoder", precision)
    with pytest.raises(BundleError, match="Scale coefficients must all be positive"):
        engine_from_onnx(path, spec, decoder_profiles(1, 8, 128), gpu="SM89")


def test_a_contract_that_the_file_does_not_fulfil_is_an_error(written_graph):
    path, spec = written_graph("vision_encoder", Precision.for_gpu("fp16"))
    renamed = (dataclasses.replace(spec.outputs[0], name="embeddings"),)
    with pytest.raises(BundleError, match="embeddings"):
        engine_from_onnx(
            path,
            dataclasses.replace(spec, outputs=renamed),
            [VISION_PROFILE],
            gpu="SM89",
        )


def test_an_unknown_gpu_is_an_error(written_graph):
    path, spec = written_graph("vision_encoder", Precision.for_gpu("fp16"))
    with pytest.raises(BundleError, match="SM90"):
        engine_from_onnx(path, spec, [VISION_PROFILE], gpu="SM90")
