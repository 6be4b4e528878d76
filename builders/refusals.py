"""What cannot be served, said before anything large is read: one sentence each, with what can be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from builders.families import family_graphs, served_types
from builders.families.base import FamilyGraphs
from builders.packed import READABLE, PackedFormat, UnreadableFormatError, packed_format
from builders.precision import UNQUANTIZED
from python_backend.errors import BundleError

_QUANTIZATION_KEYS = ("quantization_config", "compression_config", "quantization")
_MODELOPT_FILE = "hf_quant_config.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


def check_config(model: str, config: Mapping[str, Any]) -> type[FamilyGraphs]:
    """The graph builder of a checkpoint, from its config.json as it is in the file.

    Args:
        model: what the user asked for.
        config: of the checkpoint.

    Raises:
        BundleError: nobody has written its family, or it needs code of its own.
    """
    model_type = str(config.get("model_type"))
    if config.get("auto_map") and model_type not in served_types():
        code = ", ".join(sorted(_names_in(config["auto_map"])))
        raise BundleError(
            f"{model} needs code of its own ({code}), which is never run (there is no "
            f"trust_remote_code); {_served()}"
        )
    graphs = family_graphs(model_type)
    architectures = config.get("architectures") or graphs.architectures
    if not set(architectures) & set(graphs.architectures):
        raise BundleError(
            f"architecture {', '.join(architectures)} of model_type {model_type!r} is not supported, "
            f"only {', '.join(graphs.architectures)}; {_served()}"
        )
    return graphs


def check_quantization(
    model: str, config: Mapping[str, Any], *, engine: str, precision: str
) -> PackedFormat | None:
    """The format of a checkpoint that is quantized already, from its config.json; None if it is not.

    Args:
        model: what the user asked for.
        config: of the checkpoint.
        engine: that it is built for.
        precision: that it is built in.

    Raises:
        BundleError: the format is not read, the engine cannot take it, or it is to be quantized again.
    """
    method, given = _quantization(config)
    if method is None:
        return None
    try:
        packing = packed_format(method, given)
    except UnreadableFormatError as error:
        raise _quantized(model, f"{method}, {error}") from None
    if precision not in UNQUANTIZED:
        raise BundleError(
            f"{model} is quantized already ({method}) and is served as it is: leave --precision {precision} "
            f"out, or give the unquantized checkpoint; {_served()}"
        )
    if engine != "onnxruntime" and packing.has_zero_points:
        raise BundleError(
            f"{model} is quantized with zero points ({method}), which TensorRT does not take: give "
            "--engine onnxruntime, a symmetric checkpoint, or the unquantized one and --precision int4; "
            f"{_served()}"
        )
    return packing


def check_files(model: str, folder: Path, *, sees_images: bool) -> None:
    """Refuse a checkpoint folder that lacks what a build needs.

    Args:
        model: what the user asked for.
        folder: of the checkpoint.
        sees_images: whether an image processor is needed.

    Raises:
        BundleError: its weights are pickles or of ModelOpt, or it has no tokenizer or no processor.
    """
    if (folder / _MODELOPT_FILE).exists():
        raise _quantized(model, "modelopt")
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles and not any(folder.glob("*.safetensors")):
        raise BundleError(
            f"{model} has its weights in pickles only ({pickles[0]}), which run code when they are "
            f"read: save it again as safetensors, or give a revision that has them; {_served()}"
        )
    _check_any(model, folder, "tokenizer", _TOKENIZER_FILES)
    if sees_images:
        _check_any(model, folder, "image processor", _PROCESSOR_FILES)


def _check_any(model: str, folder: Path, what: str, files: tuple[str, ...]) -> None:
    if not any((folder / name).exists() for name in files):
        raise BundleError(
            f"{model} has no {what} ({' or '.join(files)}): download the checkpoint again, or copy it "
            f"from the model that this one was made from; {_served()}"
        )


def _served() -> str:
    return f"model types that can be served are {', '.join(served_types())}"


def _quantized(model: str, method: str) -> BundleError:
    return BundleError(
        f"{model} is quantized ({method}): give the unquantized checkpoint and --precision int8 or "
        f"int4, or one of {READABLE}; {_served()}"
    )


def _quantization(config: Mapping[str, Any]) -> tuple[str | None, Mapping[str, Any]]:
    """The method by which a checkpoint, or a part of it, is quantized, and all that is said about it."""
    parts = (config, *(part for part in config.values() if isinstance(part, Mapping)))
    for found in (part.get(key) for part in parts for key in _QUANTIZATION_KEYS):
        if not found:
            continue
        given = found if isinstance(found, Mapping) else {}
        if given.get("load_in_4bit") or given.get("load_in_8bit"):
            return "bitsandbytes", given
        return str(given.get("quant_method", "unknown method")), given
    return None, {}


def _names_in(auto_map: object) -> Iterator[str]:
    """Every class that `auto_map` names: it maps to names, to lists of them, and to nothing."""
    if isinstance(auto_map, Mapping):
        auto_map = list(auto_map.values())
    if isinstance(auto_map, list | tuple):
        for value in auto_map:
            yield from _names_in(value)
    elif auto_map is not None:
        yield str(auto_map)
