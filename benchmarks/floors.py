"""What cannot be beaten: the machine's bandwidth and arithmetic, and what a model asks of both."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.workload import Load

_FLOAT_BYTES = 4
_READ_BYTES = 1 << 30
_GEMM_SIZE = 2048
_NUM_TRIES = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSpeed:
    """The best of several tries with one thread per core.

    Attributes:
        read_bytes_per_s: summing a gigabyte of float32.
        flops_per_s: float32 matrix product, a multiplication and an addition counted as two.
    """

    read_bytes_per_s: float
    flops_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelWork:
    """What one model has to compute and read, in fp32.

    Attributes:
        decoder_bytes: weights that every decode step reads; the output head is among them.
        decoder_flops_per_token: of a prompt token, without attention and without the head.
        head_flops: logits of one token.
        attention_flops_per_pair: of one token that attends to one other, over all layers.
        encoder_flops_per_patch: of a patch, without attention between patches.
        encoder_attention_flops_per_pair: of one patch that attends to one other, over all layers
            that attend to the whole picture; windows are left out.
        vision_bytes: weights of the vision encoder.
        kv_bytes_per_token: keys and values of one token.
        embed_bytes_per_image_token: image embeddings.
        merge_size: patches per image token, along one side.
    """

    decoder_bytes: int
    decoder_flops_per_token: int
    head_flops: int
    attention_flops_per_pair: int
    encoder_flops_per_patch: int
    encoder_attention_flops_per_pair: int
    vision_bytes: int
    kv_bytes_per_token: int
    embed_bytes_per_image_token: int
    merge_size: int

    def prompt_flops(self, num_tokens: int, num_image_tokens: int) -> int:
        """Arithmetic from pixels to the first token."""
        num_patches = num_image_tokens * self.merge_size**2
        return (
            num_tokens * self.decoder_flops_per_token
            + num_tokens * (num_tokens + 1) // 2 * self.attention_flops_per_pair
            + self.head_flops
            + num_patches * self.encoder_flops_per_patch
            + num_patches**2 * self.encoder_attention_flops_per_pair
        )

    @property
    def decode_flops(self) -> int:
        """Arithmetic of one token of one request, without attention."""
        return self.decoder_flops_per_token + self.head_flops


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """The least time a load can take on a machine.

    Attributes:
        ttft_s: of a request that is alone.
        tpot_s: of a decode step of all requests of the load.
        tokens_per_s: when nothing but prompts and decode steps of all requests takes time.
    """

    ttft_s: float
    tpot_s: float
    tokens_per_s: float


def floor_of(
    work: ModelWork, speed: MachineSpeed, load: Load, num_tokens: int, num_image_tokens: int
) -> Floor:
    """The floor of a load whose requests have prompts of this length."""
    ttft_s = work.prompt_flops(num_tokens, num_image_tokens) / speed.flops_per_s
    step_s = max(
        work.decoder_bytes / speed.read_bytes_per_s,
        load.concurrency * work.decode_flops / speed.flops_per_s,
    )
    wall_s = load.concurrency * ttft_s + (load.num_output_tokens - 1) * step_s
    num_output_tokens = load.concurrency * load.num_output_tokens
    return Floor(ttft_s=ttft_s, tpot_s=step_s, tokens_per_s=num_output_tokens / wall_s)


class SpeedTest:
    """Measures the machine; meant for a worker process, because torch keeps its threads."""

    def __init__(self) -> None:
        import torch

        self._num_threads = len(os.sched_getaffinity(0))
        torch.set_num_threads(self._num_threads)

    def run(self) -> MachineSpeed:
        """Measure both, a few seconds."""
        import torch

        data = torch.ones(_READ_BYTES // _FLOAT_BYTES)
        read_s = _best_s(lambda: torch.sum(data))
        left, right = torch.rand(2, _GEMM_SIZE, _GEMM_SIZE)
        gemm_s = _best_s(lambda: torch.mm(left, right))
        return MachineSpeed(
            read_bytes_per_s=_READ_BYTES / read_s, flops_per_s=2 * _GEMM_SIZE**3 / gemm_s
        )


def _best_s(action: Callable[[], object]) -> float:
    best_s = math.inf
    for _ in range(_NUM_TRIES):
        start = time.perf_counter()
        action()
        best_s = min(best_s, time.perf_counter() - start)
    return best_s


def work_of(checkpoint: Path, config: Mapping[str, Any]) -> ModelWork:
    """What a Qwen2.5-VL checkpoint with tied embeddings asks of the machine.

    Args:
        checkpoint: its folder, with one file of weights.
        config: the flat config.json.
    """
    sizes = _sizes(checkpoint / "model.safetensors")
    vision_config = config["vision_config"]
    merged = _sum(sizes, "visual.merger.")
    per_patch = _sum(sizes, "visual.") - merged
    layers = _sum(sizes, "model.layers.")
    merge_area = int(vision_config["spatial_merge_size"]) ** 2
    num_full = len(vision_config["fullatt_block_indexes"])
    head_size = config["hidden_size"] // config["num_attention_heads"]
    num_layers = config["num_hidden_layers"]
    kv_values = 2 * num_layers * config["num_key_value_heads"] * head_size
    return ModelWork(
        decoder_bytes=_FLOAT_BYTES * _sum(sizes, "model."),
        decoder_flops_per_token=2 * layers,
        head_flops=2 * sizes["model.embed_tokens.weight"],
        attention_flops_per_pair=4 * num_layers * config["hidden_size"],
        encoder_flops_per_patch=2 * per_patch + 2 * merged // merge_area,
        encoder_attention_flops_per_pair=4 * num_full * vision_config["hidden_size"],
        vision_bytes=_FLOAT_BYTES * _sum(sizes, "visual."),
        kv_bytes_per_token=_FLOAT_BYTES * kv_values,
        embed_bytes_per_image_token=_FLOAT_BYTES * config["hidden_size"],
        merge_size=int(vision_config["spatial_merge_size"]),
    )


def _sizes(path: Path) -> dict[str, int]:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        return {name: math.prod(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def _sum(sizes: Mapping[str, int], prefix: str) -> int:
    return sum(size for name, size in sizes.items() if name.startswith(prefix))
