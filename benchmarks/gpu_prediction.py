"""What a 7B can reach on an H100, by arithmetic alone: `python -m benchmarks.gpu_prediction`.

Nothing is measured. A step can take no less than the time to read what it reads, or to compute what it
computes; the prediction assumes that the engine reaches a share of the memory's bandwidth. The table is
in docs/performance.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.checkpoint import PRESETS

H100_BYTES_PER_S = 3.35e12
H100_FLOPS_PER_S = 989e12
"""SXM, by NVIDIA's data sheet: HBM3, and dense bfloat16 on tensor cores. Weights of fewer bits are restored
to bfloat16 inside the product, so that arithmetic is no faster with them."""
BANDWIDTH_SHARES = (0.65, 0.8)
"""What decode steps are assumed to reach."""
CONTEXT = 1024
"""Tokens of each row that is decoded."""
NUM_ROWS = (1, 8, 16, 32, 64)
# Bytes per weight: of MLPs, and of attention and the head. int4 has a bfloat16 scale for 128 weights.
WEIGHT_BYTES = {"bf16": (2.0, 2.0), "fp8": (1.0, 1.0), "int4": (0.5 + 2 / 128, 1.0)}


@dataclass(frozen=True, slots=True)
class DecoderSize:
    """Numbers of weights and of cached values.

    Attributes:
        mlp_weights: of all decoder layers.
        other_weights: of attention in all decoder layers, and of the output head.
        kv_values_per_token: keys and values of all layers.
        attention_flops_per_pair: one token that attends to one other, in all layers.
    """

    mlp_weights: int
    other_weights: int
    kv_values_per_token: int
    attention_flops_per_pair: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> DecoderSize:
        """Sizes of a decoder, by the names of config.json."""
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        num_layers, head_size = config["num_hidden_layers"], hidden // heads
        kv_size = config["num_key_value_heads"] * head_size
        attention = 2 * hidden * hidden + 2 * hidden * kv_size
        mlp = 3 * hidden * config["intermediate_size"]
        return cls(
            mlp_weights=num_layers * mlp,
            other_weights=num_layers * attention + hidden * config["vocab_size"],
            kv_values_per_token=2 * num_layers * kv_size,
            attention_flops_per_pair=4 * num_layers * hidden,
        )

    def step_bytes(self, precision: str, num_rows: int) -> float:
        """What a decode step reads: all weights once, and the cache (bfloat16) of every row."""
        of_mlp, of_other = WEIGHT_BYTES[precision]
        weights = self.mlp_weights * of_mlp + self.other_weights * of_other
        return weights + 2 * num_rows * CONTEXT * self.kv_values_per_token

    def step_flops(self, num_rows: int) -> int:
        """What a decode step computes."""
        products = 2 * (self.mlp_weights + self.other_weights)
        return num_rows * (products + CONTEXT * self.attention_flops_per_pair)


def main() -> None:
    """Print the table."""
    size = DecoderSize.of(PRESETS["7b"].text)
    low, high = BANDWIDTH_SHARES
    print("| weights | rows | GB read | GFLOP | floor ms | floor tokens/s | predicted tokens/s |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for precision in WEIGHT_BYTES:
        for num_rows in NUM_ROWS:
            num_bytes, flops = size.step_bytes(precision, num_rows), size.step_flops(num_rows)
            floor_s = max(num_bytes / H100_BYTES_PER_S, flops / H100_FLOPS_PER_S)
            rate = num_rows / floor_s
            print(
                f"| {precision} | {num_rows} | {num_bytes / 1e9:.1f} | {flops / 1e9:,.0f} | "
                f"{1e3 * floor_s:.2f} | {rate:,.0f} | {low * rate:,.0f} to {high * rate:,.0f} |"
            )


if __name__ == "__main__":
    main()
