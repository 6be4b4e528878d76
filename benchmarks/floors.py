"""What cannot be beaten: the machine's bandwidth and arithmetic, and what a model asks of both."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from benchmarks.workload import PICTURE_SIZE, Load

_FLOAT_BYTES = 4
_WEIGHT_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0, "int4": 0.5}
"""By precision; scales, and what is kept at more bits, are left out of the floor."""
_READ_BYTES = 1 << 30
_GEMM_SIZE = 2048
_NUM_TRIES = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSpeed:
    """The best of several tries, with one thread per core or on a GPU.

    Attributes:
        read_bytes_per_s: summing a gigabyte of float32; on a GPU copying there, where what is written
            counts as well.
        flops_per_s: float32 matrix product of PyTorch or ONNX Runtime, whichever is faster, on a GPU bfloat16
            with CuPy; a multiplication and an addition counted as two.
        is_gpu: whether it is a GPU's.
    """

    read_bytes_per_s: float
    flops_per_s: float
    is_gpu: bool = False

    @property
    def in_words(self) -> str:
        """Both figures, and what they are of."""
        memory, arithmetic = "memory reads", "fp32 matrix products"
        if self.is_gpu:
            memory = "copies within the GPU's memory, read and written"
            arithmetic = "bf16 matrix products"
        return (
            f"{self.read_bytes_per_s / 1e9:,.1f} GB/s of {memory}, "
            f"{self.flops_per_s / 1e9:,.0f} GFLOP/s of {arithmetic}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelWork:
    """What one model has to compute and read.

    Attributes:
        decoder_bytes: weights that every decode step reads, the output head among them.
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
        tokens_per_picture: image tokens of a picture of the workload.
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
    tokens_per_picture: int

    def prompt_flops(self, num_tokens: int, num_pictures: int) -> int:
        """Arithmetic from pixels to the first token; pictures do not see each other."""
        num_patches = self.tokens_per_picture * self.merge_size**2
        picture_flops = (
            num_patches * self.encoder_flops_per_patch
            + num_patches**2 * self.encoder_attention_flops_per_pair
        )
        return (
            num_tokens * self.decoder_flops_per_token
            + num_tokens * (num_tokens + 1) // 2 * self.attention_flops_per_pair
            + self.head_flops
            + num_pictures * picture_flops
        )

    def decode_flops(self, num_tokens: int) -> int:
        """Arithmetic of one token of one request that attends to so many."""
        attention = num_tokens * self.attention_flops_per_pair
        return self.decoder_flops_per_token + self.head_flops + attention

    def decode_bytes(self, num_tokens: int, concurrency: int) -> int:
        """What a step of so many requests reads: the weights once, and the keys and values of each."""
        return self.decoder_bytes + concurrency * num_tokens * self.kv_bytes_per_token


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """The least time a load can take on a machine.

    Attributes:
        ttft_s: of a request that is alone.
        ttft_p50_s: of the median of all requests at once: the prompts of half of them come before.
        tpot_s: of a decode step of all requests of the load.
        tokens_per_s: when nothing but prompts and decode steps of all requests takes time.
    """

    ttft_s: float
    ttft_p50_s: float
    tpot_s: float
    tokens_per_s: float


def floor_of(work: ModelWork, speed: MachineSpeed, load: Load, num_tokens: int) -> Floor:
    """The floor of a load whose requests have prompts of this length, image tokens included."""
    ttft_s = work.prompt_flops(num_tokens, load.num_pictures_each) / speed.flops_per_s
    step_s = max(
        work.decode_bytes(num_tokens, load.concurrency) / speed.read_bytes_per_s,
        load.concurrency * work.decode_flops(num_tokens) / speed.flops_per_s,
    )
    wall_s = load.concurrency * ttft_s + (load.num_output_tokens - 1) * step_s
    num_output_tokens = load.concurrency * load.num_output_tokens
    return Floor(
        ttft_s=ttft_s,
        ttft_p50_s=math.ceil(load.concurrency / 2) * ttft_s,
        tpot_s=step_s,
        tokens_per_s=num_output_tokens / wall_s,
    )


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
        read_s = best_s(lambda: torch.sum(data))
        left, right = torch.rand(2, _GEMM_SIZE, _GEMM_SIZE)
        session = _product_session(right.numpy(), self._num_threads)
        # Whichever is faster: PyTorch's does not use all that some processors have.
        gemm_s = min(
            best_s(lambda: torch.mm(left, right)),
            best_s(lambda: session.run(None, {"left": left.numpy()})),
        )
        return MachineSpeed(
            read_bytes_per_s=_READ_BYTES / read_s, flops_per_s=2 * _GEMM_SIZE**3 / gemm_s
        )


def _product_session(right: np.ndarray, num_threads: int) -> onnxruntime.InferenceSession:
    """ONNX Runtime's product of a matrix [N, N] that is fed and one that is packed before."""
    size = list(right.shape)
    left, product = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, size)
        for name in ("left", "product")
    )
    node = onnx.helper.make_node("MatMul", ["left", "right"], ["product"])
    weight = onnx.numpy_helper.from_array(right, "right")
    graph = onnx.helper.make_graph([node], "product", [left], [product], [weight])
    opset = onnx.helper.make_opsetid("", 21)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def best_s(action: Callable[[], object]) -> float:
    """Seconds of the fastest of several tries."""
    best = math.inf
    for _ in range(_NUM_TRIES):
        start = time.perf_counter()
        action()
        best = min(best, time.perf_counter() - start)
    return best


def work_of(checkpoint: Path, precision: str, *, is_gpu: bool = False) -> ModelWork:
    """What a Qwen2.5-VL checkpoint with tied embeddings asks of the machine.

    Args:
        checkpoint: its folder, with one file of weights.
        precision: of the decoder's weights, as `triton-vlm build` takes it.
        is_gpu: whether the rest has 16 bits, as in TensorRT engines, and not 32.
    """
    config = _read_json(checkpoint / "config.json")
    value_bytes = 2 if is_gpu else _FLOAT_BYTES
    sizes = _sizes(checkpoint / "model.safetensors")
    vision_config = config["vision_config"]
    merged = _sum(sizes, "visual.merger.")
    per_patch = _sum(sizes, "visual.") - merged
    layers = _sum(sizes, "model.layers.")
    merge_size = int(vision_config["spatial_merge_size"])
    num_full = len(vision_config["fullatt_block_indexes"])
    head_size = config["hidden_size"] // config["num_attention_heads"]
    num_layers = config["num_hidden_layers"]
    kv_values = 2 * num_layers * config["num_key_value_heads"] * head_size
    return ModelWork(
        decoder_bytes=int(_WEIGHT_BYTES[precision] * _sum(sizes, "model.")),
        decoder_flops_per_token=2 * layers,
        head_flops=2 * sizes["model.embed_tokens.weight"],
        attention_flops_per_pair=4 * num_layers * config["hidden_size"],
        encoder_flops_per_patch=2 * per_patch + 2 * merged // merge_size**2,
        encoder_attention_flops_per_pair=4 * num_full * vision_config["hidden_size"],
        vision_bytes=value_bytes * _sum(sizes, "visual."),
        kv_bytes_per_token=value_bytes * kv_values,
        embed_bytes_per_image_token=value_bytes * config["hidden_size"],
        merge_size=merge_size,
        tokens_per_picture=_tokens_per_picture(checkpoint, merge_size),
    )


def _tokens_per_picture(checkpoint: Path, merge_size: int) -> int:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    options = _read_json(checkpoint / "preprocessor_config.json")
    token_size = options["patch_size"] * merge_size
    limits = options["min_pixels"], options["max_pixels"]
    height, width = smart_resize(PICTURE_SIZE, PICTURE_SIZE, token_size, *limits)
    return int(height // token_size) * int(width // token_size)


def _read_json(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


def _sizes(path: Path) -> dict[str, int]:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        return {name: math.prod(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def _sum(sizes: Mapping[str, int], prefix: str) -> int:
    return sum(size for name, size in sizes.items() if name.startswith(prefix))
