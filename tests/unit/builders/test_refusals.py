"""What cannot be served is refused in one sentence, before any weight is read, with what can be."""

from __future__ import annotations

import json
from pathlib import Path

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

    def refuse(config: dict, files: tuple[str, ...] = FILES) -> str:
        folder = tmp_path / "checkpoint"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        for name in files:
            (folder / name).touch()
        return sentence(str(folder))

    return refuse


def sentence(model: str) -> str:
    with pytest.raises(BundleError) as caught:
        open_source(model)
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


@pytest.mark.parametrize(
    "method", ["gptq", "awq", "compressed-tensors", "bitsandbytes", "fp8", "modelopt", "hqq"]
)
@pytest.mark.parametrize("part", [None, "text_config"])
def test_quantized_checkpoint_is_named_with_what_to_do_instead(refusal, method, part) -> None:
    quantized = {"quantization_config": {"quant_method": method}}
    message = refusal(QWEN | (quantized if part is None else {part: quantized}))
    assert f"is quantized ({method})" in message
    assert "give the unquantized checkpoint and --precision int8 or int4" in message


@pytest.mark.parametrize(
    ("quantized", "method"),
    [
        ({"quantization_config": {"load_in_4bit": True}}, "bitsandbytes"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "unknown method"),
        ({"quantization_config": "4 bits"}, "unknown method"),
    ],
)
def test_other_spellings_of_quantized_are_recognized(refusal, quantized, method) -> None:
    assert f"is quantized ({method})" in refusal(QWEN | quantized)


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


def test_nothing_but_the_config_is_downloaded_of_what_is_refused(
    tmp_path: Path, monkeypatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "blip_9000"}))
    downloads = []

    def snapshot_download(model: str, *, allow_patterns: list[str]) -> str:
        downloads.append((model, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert "blip_9000" in sentence("org/model")
    assert downloads == [("org/model", ["config.json"])]
