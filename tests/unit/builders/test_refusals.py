"""What cannot be served is refused in one sentence, before any weight is read, with what can be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from builders.families import served_types
from builders.source import open_source
from python_backend.errors import BundleError

QWEN = {"model_type": "qwen2_5_vl", "architectures": ["Qwen2_5_VLForConditionalGeneration"]}
GEMMA_TEXT = {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"]}
FILES = ("model.safetensors", "tokenizer.json", "preprocessor_config.json")


@pytest.fixture
def refusal(tmp_path: Path):
    """From a config and the names of other files, all empty, to the sentence that refuses them."""

    def refuse(config: dict, files: tuple[str, ...] = FILES, **options: str) -> str:
        folder = tmp_path / "checkpoint"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        for name in files:
            (folder / name).touch()
        return sentence(str(folder), **options)

    return refuse


def sentence(model: str, **options: str) -> str:
    with pytest.raises(BundleError) as caught:
        open_source(model, **options)
    message = caught.value.message
    assert "\n" not in message
    assert "  " not in message
    assert not message.endswith(".")
    assert ", ".join(served_types()) in message
    return message


@pytest.mark.parametrize("model_type", ["blip_9000", "qwen2", None])
def test_unknown_model_type_is_named(refusal, model_type) -> None:
    assert f"model_type {str(model_type)!r} is not supported" in refusal({"model_type": model_type})


@pytest.mark.parametrize(
    ("config", "served"),
    [
        (GEMMA_TEXT | {"architectures": ["Gemma3ForSequenceClassification"]}, "Gemma3ForCausalLM"),
        (QWEN | {"architectures": ["Qwen2_5_VLModel"]}, QWEN["architectures"][0]),
    ],
)
def test_architecture_that_is_not_served_is_named_with_the_one_that_is(
    refusal, config, served
) -> None:
    message = refusal(config)
    assert f"architecture {config['architectures'][0]} of model_type" in message
    assert f"only {served};" in message


@pytest.mark.parametrize("method", ["bitsandbytes", "fp8", "modelopt", "hqq", "auto-round"])
@pytest.mark.parametrize("part", [None, "text_config"])
def test_quantized_checkpoint_is_named_with_what_to_do_instead(refusal, method, part) -> None:
    quantized = {"quantization_config": {"quant_method": method}}
    message = refusal(QWEN | (quantized if part is None else {part: quantized}))
    assert f"is quantized ({method}, not read)" in message
    assert "give the unquantized checkpoint and --precision int8 or int4" in message
    assert "or one of awq (gemm, 4 bits), gptq (4 or 8 bits) and compressed-tensors" in message


def _compressed(layout: str = "pack-quantized", group: Any = None, **weights: Any) -> dict:
    scheme = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128} | weights
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "config_groups": {"group_0": {"weights": scheme} | (group or {})},
    }


FP8 = {"num_bits": 8, "type": "float"}


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"quant_method": "awq", "version": "gemv"}, "awq, gemv layout"),
        ({"quant_method": "awq", "version": "GEMV_FAST"}, "awq, gemv_fast layout"),
        ({"quant_method": "awq", "bits": 3}, "awq, 3 bits"),
        ({"quant_method": "awq", "group_size": 16}, "awq, groups of 16"),
        ({"quant_method": "gptq", "bits": 3}, "gptq, 3 bits"),
        ({"quant_method": "gptq"}, "gptq, None bits"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 1024}, "gptq, groups of 1024"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "gptq, marlin layout"),
        ({"quant_method": "gptq", "bits": 4, "is_marlin_format": True}, "gptq, marlin layout"),
        (_compressed("nvfp4-pack-quantized", num_bits=4, type="float"), "nvfp4-pack-quantized"),
        (_compressed("mxfp4-pack-quantized", num_bits=4, type="float"), "mxfp4-pack-quantized"),
        (_compressed("marlin-24"), "marlin-24"),
        (_compressed("mixed-precision", {"format": "float-quantized"}), "float-quantized"),
        (_compressed("naive-quantized", num_bits=8), "naive-quantized"),
        (
            _compressed("int-quantized", {"input_activations": {"num_bits": 8}}, num_bits=8),
            "int-quantized, activations are quantized too",
        ),
        (
            _compressed("float-quantized", {"input_activations": FP8}, **FP8),
            "float-quantized, activations are quantized too",
        ),
        (_compressed(num_bits=6), "6 bits, int"),
        (_compressed(strategy="tensor"), "strategy tensor"),
        (_compressed(group_size=96), "groups of 96"),
        (_compressed(actorder="group"), "activation order"),
        (_compressed() | {"kv_cache_scheme": FP8}, "kv_cache_scheme"),
        (_compressed() | {"sparsity_config": {"format": "sparse-24"}}, "sparsity_config"),
        (_compressed() | {"transform_config": {"R1": {}}}, "transform_config"),
        (_compressed() | {"config_groups": {"W4A16": ["Linear"]}}, "config_groups without schemes"),
        ({"quant_method": "compressed-tensors"}, "config_groups without schemes"),
    ],
)
def test_what_is_not_read_of_a_format_is_named(refusal, given, reason) -> None:
    message = refusal(QWEN | {"quantization_config": given})
    method = given["quant_method"]
    wanted = reason if reason.startswith(method) else f"{method}, {reason}"
    assert f"is quantized ({wanted}): give the unquantized checkpoint" in message


READABLE = {
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"},
    "gptq": {"quant_method": "gptq", "bits": 8, "group_size": -1, "sym": False, "desc_act": True},
    "compressed-tensors": _compressed(symmetric=False),
}


@pytest.mark.parametrize("method", READABLE)
@pytest.mark.parametrize("precision", ["int8", "int4", "fp8"])
def test_a_quantized_checkpoint_is_not_quantized_again(refusal, method, precision) -> None:
    message = refusal(QWEN | {"quantization_config": READABLE[method]}, precision=precision)
    assert f"is quantized already ({method}) and is served as it is" in message
    assert f"leave --precision {precision} out" in message


@pytest.mark.parametrize("method", READABLE)
@pytest.mark.parametrize("engine", ["tensorrt", "tensorrt_rtx"])
def test_zero_points_are_not_for_tensorrt(refusal, method, engine) -> None:
    config = QWEN | {"quantization_config": READABLE[method]}
    message = refusal(config, engine=engine, precision="bf16")
    assert f"is quantized with zero points ({method}), which TensorRT does not take" in message
    assert "give --engine onnxruntime" in message


@pytest.mark.parametrize(
    ("engine", "given"),
    [
        *(("onnxruntime", given) for given in READABLE.values()),
        ("tensorrt_rtx", {"quant_method": "gptq", "bits": 4, "sym": True}),
        ("tensorrt_rtx", _compressed(symmetric=True)),
    ],
)
def test_what_is_read_of_a_format_gets_as_far_as_the_files(refusal, engine, given) -> None:
    config = QWEN | {"quantization_config": given}
    assert "has no tokenizer" in refusal(config, ("model.safetensors",), engine=engine)


@pytest.mark.parametrize(
    ("quantized", "method"),
    [
        ({"quantization_config": {"load_in_4bit": True}}, "bitsandbytes"),
        ({"compression_config": _compressed("dense")}, "compressed-tensors, dense"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "unknown method"),
        ({"quantization_config": "4 bits"}, "unknown method"),
    ],
)
def test_other_spellings_of_quantized_are_recognized(refusal, quantized, method) -> None:
    assert f"is quantized ({method}" in refusal(QWEN | quantized)


def test_modelopt_says_so_in_a_file_of_its_own(refusal) -> None:
    assert "is quantized (modelopt)" in refusal(QWEN, (*FILES, "hf_quant_config.json"))


@pytest.mark.parametrize(
    "auto_map",
    [
        {"AutoConfig": "configuration_x.XConfig", "AutoModel": "modeling_x.XModel"},
        {"AutoTokenizer": ["modeling_x.XModel", None]},
    ],
)
def test_code_of_the_checkpoint_is_never_run(refusal, auto_map) -> None:
    """CVE-2026-65119: code that came with a tokenizer."""
    message = refusal({"model_type": "x", "auto_map": auto_map})
    assert "needs code of its own" in message
    assert "modeling_x.XModel" in message
    assert "trust_remote_code" in message


def test_code_beside_a_known_model_is_not_needed(refusal) -> None:
    """It gets as far as the files, which are empty here."""
    config = QWEN | {"auto_map": {"AutoModel": "modeling_x.XModel"}}
    assert "has no tokenizer" in refusal(config, files=("model.safetensors",))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.ckpt"])
def test_weights_that_are_pickles_are_named(refusal, name) -> None:
    """CVE-2026-3989: a pickle runs code when it is read."""
    message = refusal(QWEN, (name, *FILES[1:]))
    assert f"pickles only ({name})" in message
    assert "save it again as safetensors" in message


def test_missing_tokenizer_is_named(refusal) -> None:
    assert "has no tokenizer (tokenizer.json or" in refusal(QWEN, (FILES[0], FILES[2]))


def test_missing_image_processor_is_named(refusal) -> None:
    assert "has no image processor (preprocessor_config.json or" in refusal(QWEN, FILES[:2])


def test_text_only_checkpoint_needs_no_image_processor(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(GEMMA_TEXT))
    for name in FILES[:2]:
        (tmp_path / name).touch()
    with pytest.raises(BundleError, match=r"model\.safetensors is not a complete safetensors file"):
        open_source(str(tmp_path))


@pytest.mark.parametrize(
    ("config", "options", "named"),
    [
        ({"model_type": "blip_9000"}, {}, "blip_9000"),
        (QWEN | {"quantization_config": _compressed("marlin-24")}, {}, "marlin-24"),
        (QWEN | {"quantization_config": READABLE["awq"]}, {"precision": "int4"}, "awq"),
        (QWEN | {"quantization_config": READABLE["awq"]}, {"engine": "tensorrt_rtx"}, "awq"),
    ],
)
def test_nothing_but_the_config_is_downloaded_of_what_is_refused(
    tmp_path: Path, monkeypatch, config, options, named
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    downloads = []

    def snapshot_download(model: str, *, allow_patterns: list[str]) -> str:
        downloads.append((model, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert named in sentence("org/model", **options)
    assert downloads == [("org/model", ["config.json"])]
