"""A model and a machine for the benchmarks' tests."""

from __future__ import annotations

from benchmarks.environment import Environment
from benchmarks.floors import ModelWork

WORK = ModelWork(
    decoder_bytes=1000,
    decoder_flops_per_token=100,
    head_flops=50,
    attention_flops_per_pair=2,
    encoder_flops_per_patch=10,
    encoder_attention_flops_per_pair=1,
    vision_bytes=500,
    kv_bytes_per_token=8,
    embed_bytes_per_image_token=4,
    merge_size=2,
    tokens_per_picture=2,
)
ENVIRONMENT = Environment(
    cpu="Some CPU (avx2)",
    num_cores=2,
    memory_bytes=10**9,
    kernel="Linux 6",
    versions={"python": "3.11"},
    revision="abc",
    manifest_sha256="def",
    busy_share_before=0.0,
    command="python -m benchmarks.run",
    started="2026-01-01",
)
