from __future__ import annotations

from benchmarks.floors import MachineSpeed, floor_of
from benchmarks.workload import decode_load, pictures_load
from tests.unit.benchmarks.examples import WORK

SPEED = MachineSpeed(read_bytes_per_s=100.0, flops_per_s=1000.0)


def test_a_prompt_pays_for_its_layers_its_causal_attention_and_one_row_of_logits():
    assert WORK.prompt_flops(3, 0) == 3 * 100 + 6 * 2 + 50


def test_a_picture_adds_its_patches_and_their_attention():
    assert WORK.prompt_flops(3, 2) - WORK.prompt_flops(3, 0) == 8 * 10 + 64


def test_a_decode_step_of_few_requests_is_bound_by_memory():
    assert floor_of(WORK, SPEED, decode_load(1, 4), 3, 0).tpot_s == 10.0


def test_a_decode_step_of_many_requests_is_bound_by_arithmetic():
    assert floor_of(WORK, SPEED, decode_load(100, 4), 3, 0).tpot_s == 15.0


def test_ceiling_is_every_prompt_and_every_step_and_nothing_else():
    floor = floor_of(WORK, SPEED, pictures_load(2, 5), 3, 2)
    assert floor.tokens_per_s == 2 * 5 / (2 * floor.ttft_s + 4 * floor.tpot_s)
