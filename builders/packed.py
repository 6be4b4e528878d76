"""Checkpoints that are quantized already: the linear layers of AWQ, GPTQ and compressed-tensors.

Integers, scales and zero points are read as they are stored, and nothing is rounded. What the formats have in
common is words of 32 bits that hold integers, the lowest bits first, and a scale per group of input features.

Dimension letters: K input features, N output features, G groups, B bits of an integer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from builders.checkpoint import Checkpoint, StoredTensor
from builders.precision import INT8_BLOCK_SIZE
from python_backend.errors import BundleError

READABLE = (
    "awq (gemm, 4 bits), gptq (4 or 8 bits) and compressed-tensors (pack-quantized, 4 or 8 bits), in "
    "groups of 32, 64 or 128 or whole rows"
)
_BITS = (4, 8)
_GROUP_SIZES = (32, 64, 128)
_WHOLE_ROW = -1


class UnreadableFormatError(Exception):
    """A quantization that is not read; the text says what it is about it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedLinear:
    """One linear layer of a quantized checkpoint.

    Its weight is the transpose of `(integers - zero_points) * scales`, block by block.

    Attributes:
        shape: [K, N].
        bits: B.
        block_size: input features that share a scale.
        integers: reads int8 [K, N] of B bits.
        scales: reads float [ceil(K / block_size), N], in the dtype of the checkpoint.
        zero_points: int8 [ceil(K / block_size), N] of B bits, None if all are 0.
    """

    shape: tuple[int, int]
    bits: int
    block_size: int
    integers: Callable[[], np.ndarray]
    scales: Callable[[], np.ndarray]
    zero_points: np.ndarray | None

    def dequantized(self) -> np.ndarray:
        """The weight, float32 [N, K]."""
        num_in = self.shape[0]

        def spread(blocks: np.ndarray) -> np.ndarray:
            return np.repeat(blocks.astype(np.float32), self.block_size, axis=0)[:num_in]

        weight = self.integers().astype(np.float32)
        if self.zero_points is not None:
            weight -= spread(self.zero_points)
        return (weight * spread(self.scales())).T


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedFormat:
    """How a checkpoint holds its quantized layers.

    Attributes:
        method: its name in config.json.
        has_zero_points: whether config.json says that zero is not the middle of the integers.
        suffix: last part of the name of a layer's integers.
        read: a layer by the name of its module.
    """

    method: str
    has_zero_points: bool
    suffix: str
    read: Callable[[Checkpoint, str], PackedLinear]


def packed_format(method: str, config: Mapping[str, Any]) -> PackedFormat:
    """The format that a quantization config describes.

    Args:
        method: its `quant_method`.
        config: all of it.

    Raises:
        UnreadableFormatError: it is none of those that are read.
    """
    if method not in _FORMATS:
        raise UnreadableFormatError("not read")
    return _FORMATS[method](config)


def packed_linears(checkpoint: Checkpoint, packing: PackedFormat) -> dict[str, PackedLinear]:
    """Every quantized layer, by the name that its weight would have if it were not quantized.

    Zero points are read, the rest when a graph is written.

    Raises:
        BundleError: there are none, or a layer is not what its format says.
    """
    names = (name for name in checkpoint if name.endswith(packing.suffix))
    modules = [name.removesuffix(packing.suffix) for name in names]
    if not modules:
        raise BundleError(
            f"config.json of {checkpoint.folder} says {packing.method}, but no tensor is named "
            f"*{packing.suffix}: download the checkpoint again"
        )
    return {f"{module}.weight": packing.read(checkpoint, module) for module in modules}


def _awq(config: Mapping[str, Any]) -> PackedFormat:
    layout = str(config.get("version") or config.get("format") or "gemm").lower()
    if layout != "gemm" or config.get("backend") == "llm-awq":
        raise UnreadableFormatError(f"{layout} layout")
    if config.get("bits", 4) != 4:
        raise UnreadableFormatError(f"{config['bits']} bits")
    _check_group_size(config)
    return PackedFormat(method="awq", has_zero_points=True, suffix=".qweight", read=_read_awq)


def _gptq(config: Mapping[str, Any]) -> PackedFormat:
    layout = str(config.get("checkpoint_format") or config.get("format") or "gptq").lower()
    if layout not in ("gptq", "gptq_v2") or config.get("is_marlin_format"):
        raise UnreadableFormatError(f"{layout if layout != 'gptq' else 'marlin'} layout")
    if config.get("bits") not in _BITS:
        raise UnreadableFormatError(f"{config.get('bits')} bits")
    _check_group_size(config)
    read = functools.partial(_read_gptq, is_first_version=layout == "gptq")
    has_zero_points = not config.get("sym", True)
    return PackedFormat(
        method="gptq", has_zero_points=has_zero_points, suffix=".qweight", read=read
    )


def _compressed_tensors(config: Mapping[str, Any]) -> PackedFormat:
    for name in ("kv_cache_scheme", "sparsity_config", "transform_config"):
        if config.get(name):
            raise UnreadableFormatError(name)
    groups = config.get("config_groups")
    if not isinstance(groups, Mapping) or not all(isinstance(g, Mapping) for g in groups.values()):
        raise UnreadableFormatError("config_groups without schemes")
    weights = [_compressed_weights(group, config.get("format")) for group in groups.values()]
    return PackedFormat(
        method="compressed-tensors",
        has_zero_points=not all(w.get("symmetric", True) for w in weights),
        suffix=".weight_packed",
        read=_read_pack_quantized,
    )


def _compressed_weights(group: Mapping[str, Any], layout: object) -> Mapping[str, Any]:
    """How one of the groups of a compressed-tensors config has its weights."""
    layout = group.get("format") or layout
    if group.get("input_activations") or group.get("output_activations"):
        # The model was made for rounded activations: weights alone would be another model.
        raise UnreadableFormatError(f"{layout}, activations are quantized too")
    weights = group.get("weights")
    if layout != "pack-quantized" or not isinstance(weights, Mapping):
        raise UnreadableFormatError(f"{layout}")
    if weights.get("type", "int") != "int" or weights.get("num_bits") not in _BITS:
        raise UnreadableFormatError(f"{weights.get('num_bits')} bits, {weights.get('type', 'int')}")
    if weights.get("strategy") not in ("group", "channel"):
        raise UnreadableFormatError(f"strategy {weights.get('strategy')}")
    if weights.get("actorder") not in (None, False, "weight", "static"):
        raise UnreadableFormatError("activation order")
    _check_group_size(weights)
    return weights


_FORMATS: Mapping[str, Callable[[Mapping[str, Any]], PackedFormat]] = {
    "awq": _awq,
    "gptq": _gptq,
    "compressed-tensors": _compressed_tensors,
}


def _check_group_size(config: Mapping[str, Any]) -> None:
    if config.get("group_size") not in (None, _WHOLE_ROW, *_GROUP_SIZES):
        raise UnreadableFormatError(f"groups of {config['group_size']}")


def _read_awq(checkpoint: Checkpoint, module: str) -> PackedLinear:
    """A layer of AutoAWQ's `WQLinear_GEMM`: qweight [K, N/8], qzeros [G, N/8], scales [G, N].

    Source: `dequantize_gemm` in AutoAWQ 0.2.9 `packing_utils.py`.
    """
    words, zeros, scales = (
        checkpoint[f"{module}.{name}"] for name in ("qweight", "qzeros", "scales")
    )
    num_in, (num_groups, num_out) = words.shape[0], _matrix(scales)
    _check_words(words, (num_in, num_out * 4 // 32))
    _check_words(zeros, (num_groups, num_out * 4 // 32))

    def unpack(stored: StoredTensor) -> np.ndarray:
        # Columns of a word take turns: 0 2 4 6 1 3 5 7.
        turns = _unpack(stored.array(), 4).reshape(stored.shape[0], -1, 2, 4)
        return turns.transpose(0, 1, 3, 2).reshape(stored.shape[0], num_out)

    return _packed_linear(
        module,
        shape=(num_in, num_out),
        num_groups=num_groups,
        bits=4,
        integers=lambda: unpack(words),
        scales=scales.array,
        zero_points=unpack(zeros),
    )


def _read_gptq(checkpoint: Checkpoint, module: str, *, is_first_version: bool) -> PackedLinear:
    """A GPTQ layer: qweight [K*B/32, N], qzeros [G, N*B/32], scales [G, N], g_idx [K].

    Source: `dequantize_weight` and `convert_gptq_v1_to_v2_format_module` in GPTQModel 7.7.
    """
    words, zeros, scales = (
        checkpoint[f"{module}.{name}"] for name in ("qweight", "qzeros", "scales")
    )
    num_groups, num_out = _matrix(scales)
    bits = next((b for b in _BITS if _matrix(zeros)[1] * 32 == num_out * b), 0)
    if not bits:
        raise _wrong_shape(zeros)
    num_in = words.shape[0] * 32 // bits
    _check_words(words, (num_in * bits // 32, num_out))
    _check_words(zeros, (num_groups, num_out * bits // 32))
    zero_words = zeros.array().view(np.uint32)
    if is_first_version:
        # Zero points were stored less 1. Whole words are added to, as whole words were subtracted from.
        zero_words = zero_words + np.uint32(sum(1 << shift for shift in range(0, 32, bits)))
    _check_order(checkpoint, f"{module}.g_idx", num_in, num_groups)
    return _packed_linear(
        module,
        shape=(num_in, num_out),
        num_groups=num_groups,
        bits=bits,
        integers=lambda: _unpack(words.array().T, bits).T,
        scales=scales.array,
        zero_points=_unpack(zero_words, bits),
    )


def _read_pack_quantized(checkpoint: Checkpoint, module: str) -> PackedLinear:
    """A layer of compressed-tensors: weight_packed [N, K*B/32], weight_scale [N, G], weight_shape N, K.

    weight_zero_point is [N*B/32, G], in older checkpoints int8 [N, G].

    Source: `PackedQuantizationCompressor` in compressed-tensors 0.20.
    """
    words, scales, size = (
        checkpoint[f"{module}.{name}"] for name in ("weight_packed", "weight_scale", "weight_shape")
    )
    if size.shape != (2,):
        raise _wrong_shape(size)
    num_out, num_in = map(int, size.array())
    bits = next((b for b in _BITS if _matrix(words)[1] == -(-num_in * b // 32)), 0)
    if not bits or _matrix(scales)[0] != num_out:
        raise _wrong_shape(words)
    num_groups = scales.shape[1]
    _check_words(words, (num_out, -(-num_in * bits // 32)))
    _check_order(checkpoint, f"{module}.weight_g_idx", num_in, num_groups)
    zero_points = None
    if f"{module}.weight_zero_point" in checkpoint:
        zeros = checkpoint[f"{module}.weight_zero_point"]
        if zeros.dtype == "I8":
            zero_points = zeros.array().view(np.uint8) + np.uint8(1 << bits - 1)
        else:
            _check_words(zeros, (-(-num_out * bits // 32), num_groups))
            zero_points = _unpack(zeros.array().T, bits)[:, :num_out].T
        zero_points = zero_points.reshape(num_out, num_groups).T
    return _packed_linear(
        module,
        shape=(num_in, num_out),
        num_groups=num_groups,
        bits=bits,
        integers=lambda: _unpack(words.array(), bits)[:, :num_in].T,
        scales=lambda: scales.array().T,
        zero_points=zero_points,
    )


def _packed_linear(
    module: str,
    *,
    shape: tuple[int, int],
    num_groups: int,
    bits: int,
    integers: Callable[[], np.ndarray],
    scales: Callable[[], np.ndarray],
    zero_points: np.ndarray | None,
) -> PackedLinear:
    """From unsigned integers and a scale per group to signed ones and a scale per block.

    A group that is a whole row is cut into blocks with the same scale: runtimes have kernels for blocks.
    """
    size, rest = divmod(shape[0], num_groups)
    repeats = 1
    if num_groups == 1:
        size, repeats = INT8_BLOCK_SIZE, -(-shape[0] // INT8_BLOCK_SIZE)
    elif rest or size not in _GROUP_SIZES:
        raise BundleError(
            f"{module} has {num_groups} scales for {shape[0]} input features; read are {READABLE}"
        )

    def to_signed(unsigned: np.ndarray) -> np.ndarray:
        return (unsigned - np.uint8(1 << bits - 1)).view(np.int8)

    if zero_points is not None:
        zero_points = np.repeat(to_signed(np.ascontiguousarray(zero_points)), repeats, axis=0)
    return PackedLinear(
        shape=shape,
        bits=bits,
        block_size=size,
        integers=lambda: to_signed(integers()),
        scales=lambda: np.repeat(scales(), repeats, axis=0),
        zero_points=zero_points if zero_points is not None and zero_points.any() else None,
    )


def _unpack(words: np.ndarray, bits: int) -> np.ndarray:
    """Integers uint8 [rows, columns * 32 / bits] of words [rows, columns]."""
    octets = np.ascontiguousarray(words).astype("<i4", copy=False).view(np.uint8)
    if bits == 8:
        return octets
    return np.stack([octets & 15, octets >> 4], axis=-1).reshape(len(octets), -1)


def _check_order(checkpoint: Checkpoint, name: str, num_in: int, num_groups: int) -> None:
    """Groups must be runs of input features; `name` says which group each belongs to, if it is there."""
    if name not in checkpoint or checkpoint[name].shape == (0,):
        return
    group = checkpoint[name].array()
    if not np.array_equal(group, np.arange(num_in) * num_groups // num_in):
        raise BundleError(
            f"tensor {name} groups input features by activation order (desc_act), which is not read: give "
            "a checkpoint quantized with desc_act false, or the unquantized one and --precision int4"
        )


def _check_words(stored: StoredTensor, shape: tuple[int, int]) -> None:
    if stored.dtype != "I32" or stored.shape != shape:
        raise _wrong_shape(stored)


def _matrix(stored: StoredTensor) -> tuple[int, int]:
    if len(stored.shape) != 2:
        raise _wrong_shape(stored)
    return stored.shape[0], stored.shape[1]


def _wrong_shape(stored: StoredTensor) -> BundleError:
    return BundleError(
        f"a quantized layer in {stored.path} has a tensor {stored.dtype} {list(stored.shape)}, which does "
        "not fit its other tensors: download the checkpoint again"
    )
