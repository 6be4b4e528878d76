"""Where a checkpoint comes from: a local folder, or a hub id that is downloaded once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from builders.checkpoint import Checkpoint, read_config
from builders.packed import PackedLinear, packed_linears
from builders.refusals import check_config, check_files, check_quantization
from python_backend.errors import BundleError

_PATTERNS = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint that this project can serve.

    Attributes:
        model_id: what the user asked for: the public id of the served model.
        checkpoint: its weights.
        config: its normalized config.json.
        generation_config: generation_config.json, empty if there is none.
        quantization: the method by which it is quantized already; empty if it is not.
        packed: its quantized layers, by the names of their weights.
    """

    model_id: str
    checkpoint: Checkpoint
    config: Mapping[str, Any]
    generation_config: Mapping[str, Any]
    quantization: str = ""
    packed: Mapping[str, PackedLinear] = field(default_factory=dict)

    @property
    def text_config(self) -> Mapping[str, Any]:
        """The part of the config that is about the decoder: all of it if the model reads text only."""
        config: Mapping[str, Any] = self.config.get("text_config", self.config)
        return config

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer: the generation config's, else the config's."""
        eos = self.generation_config.get("eos_token_id", self.config.get("eos_token_id"))
        if eos is None:
            eos = self.text_config.get("eos_token_id")
        if eos is None:
            raise BundleError(
                f"{self.checkpoint.folder} names no eos_token_id: add it to its config"
            )
        return tuple(eos) if isinstance(eos, list) else (eos,)

    @property
    def sampling_defaults(self) -> dict[str, float]:
        """What generation_config.json says, in the words of `SamplingParams`."""
        config = self.generation_config
        defaults: dict[str, float] = {}
        if config.get("repetition_penalty"):
            defaults["repetition_penalty"] = float(config["repetition_penalty"])
        if not config.get("do_sample", False):
            return {"temperature": 0.0, **defaults}
        for name in ("temperature", "top_p", "min_p"):
            if config.get(name) is not None:
                defaults[name] = float(config[name])
        if config.get("top_k"):
            defaults["top_k"] = int(config["top_k"])
        return defaults


def open_source(model: str, *, engine: str = "onnxruntime", precision: str = "fp32") -> Source:
    """Find, download if need be, and check a checkpoint.

    Args:
        model: a local folder, or a hub id such as `Qwen/Qwen2.5-VL-3B-Instruct`.
        engine: that it is opened for.
        precision: that it is to be built in.

    Raises:
        BundleError: it is missing, damaged, or of a kind this project cannot serve, or not so.
    """
    folder = Path(model)
    is_local = folder.exists()
    if not is_local:
        folder = _download(model, ["config.json"])
    raw = read_config(folder)
    graphs = check_config(model, raw)
    packing = check_quantization(model, raw, engine=engine, precision=precision)
    if not is_local:
        folder = _download(model, _PATTERNS)
    check_files(model, folder, sees_images=graphs.sees_images)
    checkpoint = Checkpoint(folder)
    packed = {} if packing is None else packed_linears(checkpoint, packing)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False).to_dict()
    except Exception as error:
        raise BundleError(f"{folder}/config.json cannot be used: {error}") from error
    model_id = folder.resolve().name if is_local else model
    return Source(
        model_id,
        checkpoint,
        config,
        _generation_config(folder),
        quantization="" if packing is None else packing.method,
        packed=packed,
    )


def _generation_config(folder: Path) -> dict[str, Any]:
    path = folder / "generation_config.json"
    if not path.exists():
        return {}
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BundleError(f"{path} is not valid JSON: download the checkpoint again") from error
    return config


def _download(model: str, patterns: list[str]) -> Path:
    """The checkpoint's folder in the hub's cache; shows progress and resumes by itself."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(model, allow_patterns=patterns))
    except HFValidationError as error:
        raise BundleError(f"{model} is neither a folder nor a hub id") from error
    except Exception as error:
        raise BundleError(
            f"{model} is not a local folder and could not be downloaded from the hub "
            f"({type(error).__name__}): check the name and the network"
        ) from error
