"""Models of quantized checkpoints answer like Hugging Face with the dequantized weights."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from builders.families import family_graphs
from builders.hf_reference import huggingface_cases
from builders.options import BuildOptions
from builders.pipeline import build
from builders.precision import Precision
from builders.verify import FP32_TOLERANCE, ROUNDED_TOLERANCE, verify
from python_backend.errors import BundleError
from python_backend.manifest import ModelFolder
from python_backend.preprocess import Preprocessor
from python_backend.sampling_params import SamplingParams
from python_backend.vlm import VLM
from tests.conftest import MAX_MODEL_LEN, SilentReport, TinyModel
from tests.tiny.conversations import conversations_of
from tests.tiny.packing import PACKINGS, pack_checkpoint
from tests.tiny.reference import hf_greedy, hf_inputs
from tests.tiny.shapes import TIED, Shape

NUM_TOKENS = 14
GREEDY = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
NEAR_TIE = 1e-4
CASES = [
    *((TIED.name, packing) for packing in PACKINGS),
    *(("tiny-gemma3", packing) for packing in ("awq", "compressed-tensors")),
    ("tiny-llava", "gptq"),
]


@dataclass(frozen=True)
class Packed:
    """A model built from a quantized checkpoint, and the dequantized checkpoint."""

    shape: Shape
    packing: str
    model: ModelFolder
    dequantized: Path
    notes: list[str]


def build_packed(checkpoint: Path, output: Path, **options: Any) -> tuple[ModelFolder, list[str]]:
    report = SilentReport()
    model, _ = build(
        BuildOptions(model=str(checkpoint), output=output, max_model_len=MAX_MODEL_LEN, **options),
        report,
    )
    return model, report.notes


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def packed(request, tiny_models, tmp_path_factory) -> Packed:
    name, packing = request.param
    tiny, folder = tiny_models(name), tmp_path_factory.mktemp(packing)
    checkpoint, dequantized = pack_checkpoint(tiny.checkpoint, folder, PACKINGS[packing])
    model, notes = build_packed(checkpoint, folder / "repository")
    return Packed(tiny.shape, packing, model, dequantized, notes)


@pytest.fixture(scope="module")
def exact(packed, tmp_path_factory) -> Packed:
    """The same model, but products with quantized weights do not round activations."""
    folder = tmp_path_factory.mktemp("exact") / "repository"
    shutil.copytree(packed.model.folder.parent, folder)
    for path in folder.rglob("*.onnx"):
        graph = onnx.load(path, load_external_data=False)
        for node in graph.graph.node:
            for attribute in node.attribute:
                if attribute.name == "accuracy_level":
                    attribute.i = 1
        onnx.save(graph, path)
    return replace(packed, model=ModelFolder.open(folder / packed.model.folder.name))


def test_build_says_what_is_kept_and_verifies_it(packed):
    method = PACKINGS[packed.packing].config["quant_method"]
    num_layers = 7 * packed.shape.num_layers
    assert packed.notes == [
        f"quantized already ({method}): its {num_layers} layers stay as they are"
    ]
    verification = packed.model.manifest.verification
    assert verification["reference"] == f"Hugging Face in eager fp32, {method} weights dequantized"
    assert 1e-4 < verification["logits_error"] < ROUNDED_TOLERANCE
    assert verification["embeds_error"] < FP32_TOLERANCE


def test_every_quantized_layer_has_the_integers_of_the_checkpoint(packed):
    """And zero points only where zero is not the middle."""
    graph = onnx.load(
        packed.model.path(packed.model.manifest.decoder), load_external_data=False
    ).graph
    nodes = [node for node in graph.node if node.op_type == "MatMulNBits"]
    packing = PACKINGS[packed.packing]
    assert len(nodes) == 7 * packed.shape.num_layers
    assert {bool(node.input[3]) for node in nodes} == {not packing.sym}
    bits = [a.i for node in nodes for a in node.attribute if a.name == "bits"]
    assert set(bits) == {packing.bits}


def test_greedy_tokens_equal_huggingface_with_the_dequantized_weights(exact):
    hf = TinyModel(exact.shape, exact.dequantized, exact.dequantized).hf
    conversations = conversations_of(exact.shape)
    expected = {}
    for name, messages in conversations.items():
        expected[name], lead = hf_greedy(hf, hf_inputs(exact.dequantized, messages), NUM_TOKENS)
        assert lead > NEAR_TIE, f"{name}: near tie"
    with VLM(exact.model.folder) as vlm:
        generations = vlm.generate(list(conversations.values()), GREEDY)
    tokens = {name: list(g.token_ids) for name, g in zip(conversations, generations, strict=True)}
    assert tokens == expected
    assert len({tuple(t) for t in expected.values()}) == len(expected)


def test_numbers_are_those_of_huggingface_with_the_dequantized_weights(exact):
    graphs = family_graphs(exact.shape.model_type)(exact.model.manifest.config)
    preprocessor = Preprocessor(exact.model)
    cases = huggingface_cases(
        exact.dequantized, graphs, preprocessor, Precision.for_cpu("fp32"), {}
    )
    verify(exact.model, cases, FP32_TOLERANCE)


def test_a_tower_is_quantized_where_the_checkpoint_has_it_so(tiny_models, tmp_path):
    checkpoint, _ = pack_checkpoint(
        tiny_models(TIED.name).checkpoint,
        tmp_path,
        PACKINGS["awq"],
        lambda name: "visual.blocks" in name and "attn.proj.weight" in name,
    )
    model, _ = build_packed(checkpoint, tmp_path / "repository")
    graph = onnx.load(model.path(model.manifest.vision_encoder), load_external_data=False).graph
    num_blocks = TIED.config["vision_config"]["depth"]
    assert [n.op_type for n in graph.node].count("MatMulNBits") == num_blocks
    assert FP32_TOLERANCE < model.manifest.verification["embeds_error"] < ROUNDED_TOLERANCE


@pytest.fixture
def checkpoint(tiny_models, tmp_path) -> Path:
    return pack_checkpoint(tiny_models(TIED.name).checkpoint, tmp_path, PACKINGS["awq"])[0]


def test_embedding_table_that_is_quantized_is_refused(tiny_models, tmp_path):
    checkpoint, _ = pack_checkpoint(
        tiny_models(TIED.name).checkpoint,
        tmp_path,
        PACKINGS["compressed-tensors"],
        lambda name: name == "model.embed_tokens.weight",
    )
    with pytest.raises(BundleError, match=r"embed_tokens\.weight quantized; only linear layers"):
        build_packed(checkpoint, tmp_path / "repository", skip_verify=True)


def test_layer_of_another_shape_than_the_config_says_is_named(checkpoint, tmp_path):
    path = checkpoint / "config.json"
    config = json.loads(path.read_text())
    config["intermediate_size"] *= 2
    path.write_text(json.dumps(config))
    with pytest.raises(BundleError, match=r"config\.json and weights do not belong together"):
        build_packed(checkpoint, tmp_path / "repository", skip_verify=True)


def test_packed_integers_are_no_weights_where_the_config_says_nothing(checkpoint, tmp_path):
    path = checkpoint / "config.json"
    config = json.loads(path.read_text())
    del config["quantization_config"]
    path.write_text(json.dumps(config))
    with pytest.raises(BundleError, match=r"has no tensor model\.layers\.0\.self_attn\.q_proj"):
        build_packed(checkpoint, tmp_path / "repository", skip_verify=True)
