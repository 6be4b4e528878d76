"""Quantized copies of tiny checkpoints, as AWQ, GPTQ and compressed-tensors write them.

Everything is packed word by word here, with none of the builder's code. Beside the quantized checkpoint
lies the same one with its weights dequantized, which Hugging Face reads as it reads any other.

Dimension letters: K input features, N output features, G groups.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

_AWQ_TURNS = (0, 2, 4, 6, 1, 3, 5, 7)
_Tensors = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class _Rounded:
    """A weight of K x N unsigned integers of so many bits, with scales and zero points [G, N]."""

    integers: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray
    bits: int

    @property
    def weight(self) -> np.ndarray:
        """[N, K]."""
        size = len(self.integers) // len(self.scales)
        zeros = np.repeat(self.zeros, size, axis=0)
        scales = np.repeat(self.scales.astype(np.float32), size, axis=0)
        return np.ascontiguousarray(((self.integers - zeros) * scales).astype(np.float32).T)


@dataclass(frozen=True, slots=True)
class Packing:
    """One way to quantize.

    Attributes:
        config: `quantization_config`.
        pack: from what was rounded to the tensors of a layer.
        bits: of an integer.
        group_size: input features of a scale; None for all.
        sym: whether zero is the middle.
    """

    config: Mapping[str, Any]
    pack: Callable[[_Rounded], _Tensors]
    bits: int = 4
    group_size: int | None = 32
    sym: bool = False


def _round(weight: np.ndarray, packing: Packing) -> _Rounded:
    """To the nearest: weight [N, K]."""
    groups = weight.T.reshape(-1, packing.group_size or weight.shape[1], len(weight))
    top = 2**packing.bits - 1
    if packing.sym:
        scales = np.abs(groups).max(axis=1) / (top // 2)
        zeros = np.full(scales.shape, top // 2 + 1)
    else:
        low, high = np.minimum(groups.min(axis=1), 0), np.maximum(groups.max(axis=1), 0)
        scales = (high - low) / top
        zeros = np.rint(-low / scales).astype(int)
    scales = scales.astype(np.float16)
    integers = np.rint(groups / scales[:, None].astype(np.float32)) + zeros[:, None]
    integers = np.clip(integers, 0, top).astype(int).reshape(-1, len(weight))
    return _Rounded(integers, scales, zeros, packing.bits)


def _words(integers: np.ndarray, bits: int, turns: tuple[int, ...] | None = None) -> np.ndarray:
    """Rows of integers in rows of words."""
    num = 32 // bits
    padded = np.zeros((len(integers), -(-integers.shape[1] // num) * num), np.int64)
    padded[:, : integers.shape[1]] = integers
    words = np.zeros((len(integers), padded.shape[1] // num), np.int64)
    for place, column in enumerate(turns or range(num)):
        words |= padded[:, column::num] << (bits * place)
    return words.astype(np.uint32).view(np.int32)


def _pack_awq(layer: _Rounded) -> _Tensors:
    return {
        "qweight": _words(layer.integers, 4, _AWQ_TURNS),
        "qzeros": _words(layer.zeros, 4, _AWQ_TURNS),
        "scales": layer.scales,
    }


def _pack_gptq(layer: _Rounded, zero_offset: int = 1) -> _Tensors:
    num_in = len(layer.integers)
    stored = _words(layer.zeros, layer.bits).view(np.uint32)
    for shift in range(0, 32, layer.bits):
        stored = stored - np.uint32(zero_offset << shift)
    return {
        "qweight": _words(layer.integers.T, layer.bits).T,
        "qzeros": stored.view(np.int32),
        "scales": layer.scales,
        "g_idx": (np.arange(num_in) // (num_in // len(layer.scales))).astype(np.int32),
        "bias": np.zeros(layer.integers.shape[1], np.float16),
    }


def _pack_compressed(layer: _Rounded) -> _Tensors:
    tensors = {
        "weight_packed": _words(layer.integers.T, layer.bits),
        "weight_scale": layer.scales.T,
        "weight_shape": np.array(layer.integers.shape[::-1]),
    }
    if (layer.zeros != 2 ** (layer.bits - 1)).any():
        tensors["weight_zero_point"] = _words(layer.zeros, layer.bits).T
    return tensors


def _gptq(**config: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, **config}


def _compressed(**weights: Any) -> dict[str, Any]:
    scheme = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, **weights}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head", "re:visual.*"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": scheme}},
    }


PACKINGS = {
    "awq": Packing({"quant_method": "awq", "bits": 4, "group_size": 32}, _pack_awq),
    "gptq": Packing(_gptq(sym=True), _pack_gptq, sym=True),
    "gptq-asymmetric": Packing(
        _gptq(sym=False, checkpoint_format="gptq_v2", bits=8),
        lambda layer: _pack_gptq(layer, zero_offset=0),
        bits=8,
    ),
    "compressed-tensors": Packing(_compressed(symmetric=True), _pack_compressed, sym=True),
    "compressed-tensors-rows": Packing(
        _compressed(symmetric=False, strategy="channel", group_size=None, num_bits=8),
        _pack_compressed,
        bits=8,
        group_size=None,
    ),
}
"""By name; gptq-asymmetric has the second version's zero points, the last a scale per row."""


def is_in_decoder(name: str) -> bool:
    """Whether a tensor is a linear layer's that is usually quantized: none of a tower, no head."""
    return "layers." in name and "proj.weight" in name and "vision" not in name


def pack_checkpoint(
    plain: Path,
    folder: Path,
    packing: Packing,
    is_packed: Callable[[str], bool] = is_in_decoder,
) -> tuple[Path, Path]:
    """Write the checkpoint `plain` quantized, and with what it was rounded to, into `folder`.

    Args:
        plain: not quantized.
        folder: where both go.
        packing: the format.
        is_packed: the names of tensors that are quantized.

    Returns:
        The quantized checkpoint and the dequantized one.
    """
    packed, dequantized = folder / "packed", folder / "dequantized"
    for target in (packed, dequantized):
        shutil.copytree(plain, target)
    for file in sorted(plain.glob("*.safetensors")):
        tensors, weights = {}, load_file(file)
        for name, weight in list(weights.items()):
            if not is_packed(name):
                tensors[name] = weight
                continue
            layer = _round(weight.float().numpy(), packing)
            weights[name] = torch.from_numpy(layer.weight)
            module = name.removesuffix(".weight")
            for part, array in packing.pack(layer).items():
                if f"{module}.{part}" not in weights:
                    tensors[f"{module}.{part}"] = torch.from_numpy(np.ascontiguousarray(array))
        save_file(tensors, packed / file.name, metadata={"format": "pt"})
        save_file(weights, dequantized / file.name, metadata={"format": "pt"})
    path = packed / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["quantization_config"] = dict(packing.config)
    path.write_text(json.dumps(config), encoding="utf-8")
    return packed, dequantized
