from __future__ import annotations

from dataclasses import replace

from benchmarks.floors import MachineSpeed, floor_of, work_of
from benchmarks.workload import decode_load, pictures_load
from tests.unit.benchmarks.examples import WORK
from triton_vlm.model_source import DEFAULT_CHECKPOINT

SPEED = MachineSpeed(read_bytes_per_s=100.0, flops_per_s=1000.0)


def test_a_prompt_pays_for_its_layers_its_causal_attention_and_one_row_of_logits():
    assert WORK.prompt_flops(3, 0) == 3 * 100 + 6 * 2 + 50


def test_a_picture_adds_its_patches_and_their_attention_to_each_other():
    without = WORK.prompt_flops(3, 0)
    assert WORK.prompt_flops(3, 1) - without == 8 * 10 + 64
    assert WORK.prompt_flops(3, 4) - without == 4 * (8 * 10 + 64)


def test_a_decode_step_of_few_requests_reads_weights_and_caches():
    assert floor_of(WORK, SPEED, decode_load(1, 4), 3).tpot_s == (1000 + 3 * 8) / 100
    assert floor_of(WORK, SPEED, decode_load(2, 4), 3).tpot_s == (1000 + 2 * 3 * 8) / 100


def test_a_decode_step_of_many_requests_is_bound_by_arithmetic():
    flops = 100 * (100 + 50 + 3 * 2)
    assert (
        floor_of(WORK, replace(SPEED, read_bytes_per_s=1e6), decode_load(100, 4), 3).tpot_s
        == flops / 1000
    )


def test_ceiling_is_every_prompt_and_every_step_and_nothing_else():
    floor = floor_of(WORK, SPEED, pictures_load(2, 5), 3)
    assert floor.tokens_per_s == 2 * 5 / (2 * floor.ttft_s + 4 * floor.tpot_s)


def test_the_median_request_waits_for_half_of_the_prompts():
    floors = [floor_of(WORK, SPEED, decode_load(n, 4), 3) for n in (1, 2, 5)]
    assert [floor.ttft_p50_s for floor in floors] == [n * floors[0].ttft_s for n in (1, 1, 3)]


def test_a_precision_has_its_bytes_per_weight_and_a_gpu_half_of_those_of_everything_else():
    full, few = work_of(DEFAULT_CHECKPOINT, "fp32"), work_of(DEFAULT_CHECKPOINT, "int4")
    assert few.decoder_bytes * 8 == full.decoder_bytes
    assert few.kv_bytes_per_token == full.kv_bytes_per_token
    on_gpu = work_of(DEFAULT_CHECKPOINT, "bf16", is_gpu=True)
    for name in ("decoder_bytes", "vision_bytes", "kv_bytes_per_token"):
        assert getattr(on_gpu, name) * 2 == getattr(full, name)


def test_a_model_that_makes_pictures_smaller_has_fewer_tokens_of_them():
    work = work_of(DEFAULT_CHECKPOINT, "fp32")
    assert work.tokens_per_picture == 16  # 112 x 112
