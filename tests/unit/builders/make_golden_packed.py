"""Writes golden_packed.safetensors: packed layers, and what the authors of their formats make of them.

Run once, with compressed-tensors 0.20.0 installed and these two files, which need torch only:

    python tests/unit/builders/make_golden_packed.py packing_utils.py qlinear_cuda_old.py

The first is awq/utils/packing_utils.py of AutoAWQ 0.2.9, the second
auto_gptq/nn_modules/qlinear/qlinear_cuda_old.py of AutoGPTQ 0.7.1. Scales are given to them in float32, so
that nothing is rounded. The file has `<method> <case>/<tensor>`, and `<method> <case>/weight` for the result.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import torch
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]
RANDOM = torch.Generator().manual_seed(0)


def load(path: str) -> ModuleType:
    """A single file as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def words(*shape: int, bits: int = 4, top: int | None = None) -> torch.Tensor:
    """Random integers below `top`, by default of all `bits`, 32 / bits of them in every int32."""
    integers = torch.randint(top or 2**bits, (*shape, 32 // bits), generator=RANDOM)
    packed = (integers << torch.arange(0, 32, bits)).sum(dim=-1)
    return torch.where(packed < 2**31, packed, packed - 2**32).int()


def scales(*shape: int) -> torch.Tensor:
    """Random scales."""
    return (torch.rand(shape, generator=RANDOM) + 0.1).half()


def awq(reference: ModuleType, num_in: int, num_out: int, group_size: int) -> Tensors:
    """[in, out] words and groups."""
    num_groups = num_in // group_size
    tensors = {
        "qweight": words(num_in, num_out // 8),
        "qzeros": words(num_groups, num_out // 8),
        "scales": scales(num_groups, num_out),
    }
    weight = reference.dequantize_gemm(
        tensors["qweight"], tensors["qzeros"], tensors["scales"].float(), 4, group_size
    )
    return {**tensors, "weight": weight.T.contiguous()}


def gptq(
    reference: ModuleType, num_in: int, num_out: int, group_size: int, bits: int, *, sym: bool
) -> Tensors:
    """Words of the first version, in which zero points are stored less 1."""
    num_groups, size = num_in // group_size, (num_in // group_size, num_out * bits // 32)
    middle = 0x77777777 if bits == 4 else 0x7F7F7F7F
    tensors = {
        "qweight": words(num_in * bits // 32, num_out, bits=bits),
        "qzeros": torch.full(size, middle, dtype=torch.int32)
        if sym
        else words(*size, bits=bits, top=2**bits - 1),
        "scales": scales(num_groups, num_out),
        "g_idx": (torch.arange(num_in) // group_size).int(),
    }
    layer = reference.QuantLinear(bits, group_size, num_in, num_out, bias=False)
    for name, tensor in tensors.items():
        setattr(layer, name, tensor.float() if name == "scales" else tensor)
    weight = layer(torch.eye(num_in))
    return {**tensors, "weight": weight.T.contiguous()}


def second_version(tensors: Tensors, bits: int) -> Tensors:
    """The same layer with zero points as they are."""
    one = 0x11111111 if bits == 4 else 0x01010101
    return {**tensors, "qzeros": tensors["qzeros"] + torch.tensor(one, dtype=torch.int32)}


def compressed(
    num_in: int, num_out: int, group_size: int | None, bits: int, *, sym: bool
) -> Tensors:
    """A layer that the library packs and unpacks; without a group size, scales are of whole rows."""
    scheme = QuantizationScheme(
        targets=["Linear"],
        weights=QuantizationArgs(
            num_bits=bits,
            symmetric=sym,
            strategy="channel" if group_size is None else "group",
            group_size=group_size,
        ),
    )
    num_groups = num_in // (group_size or num_in)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
    zeros = torch.randint(low, high, (num_out, num_groups), generator=RANDOM, dtype=torch.int8)
    scale = scales(num_out, num_groups)
    weight = torch.randn(num_out, num_in, generator=RANDOM) * 2 ** (bits - 2)
    state = {"weight": weight, "weight_scale": scale.float()}
    if not sym:
        state["weight_zero_point"] = zeros
    tensors = PackedQuantizationCompressor.compress(state, scheme)
    weight = PackedQuantizationCompressor.decompress(tensors, scheme)["weight"]
    return {**tensors, "weight_scale": scale, "weight": weight.contiguous()}


def main(awq_file: str, gptq_file: str) -> None:
    """Write all cases beside this file."""
    awq_reference, gptq_reference = load(awq_file), load(gptq_file)
    cases = {
        "awq groups of 32": awq(awq_reference, 96, 16, 32),
        "awq groups of 64": awq(awq_reference, 128, 8, 64),
        "awq groups of 128": awq(awq_reference, 256, 8, 128),
        "awq whole rows": awq(awq_reference, 64, 8, 64),
        "gptq 4 bits": gptq(gptq_reference, 96, 16, 32, 4, sym=False),
        "gptq 4 bits symmetric": gptq(gptq_reference, 128, 8, 64, 4, sym=True),
        "gptq 4 bits symmetric whole rows": gptq(gptq_reference, 96, 8, 96, 4, sym=True),
        "gptq 8 bits": gptq(gptq_reference, 64, 8, 32, 8, sym=False),
        "gptq 8 bits symmetric": gptq(gptq_reference, 256, 8, 128, 8, sym=True),
        "compressed-tensors 4 bits": compressed(128, 16, 64, 4, sym=False),
        "compressed-tensors 4 bits symmetric": compressed(256, 8, 128, 4, sym=True),
        "compressed-tensors 4 bits whole rows": compressed(100, 12, None, 4, sym=False),
        "compressed-tensors 8 bits symmetric": compressed(96, 8, 32, 8, sym=True),
        "compressed-tensors 8 bits whole rows": compressed(66, 10, None, 8, sym=False),
    }
    for name, bits in (("gptq 4 bits", 4), ("gptq 8 bits symmetric", 8)):
        cases[f"gptq_v2{name.removeprefix('gptq')}"] = second_version(cases[name], bits)
    tensors = {f"{case}/{n}": t.clone() for case, layer in cases.items() for n, t in layer.items()}
    save_file(tensors, Path(__file__).with_name("golden_packed.safetensors"))


if __name__ == "__main__":
    main(*sys.argv[1:])
