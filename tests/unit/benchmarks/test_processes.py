from __future__ import annotations

import os

from benchmarks.processes import (
    command_of,
    high_water_bytes_of,
    memory_bytes_of,
    processes_of,
)


def test_this_process_is_found_by_its_group():
    assert os.getpid() in processes_of([os.getpgrp()])


def test_touched_memory_shows():
    group = [os.getpgrp()]
    before = memory_bytes_of(group)[os.getpid()]
    touched = b"x" * (64 << 20)
    assert memory_bytes_of(group)[os.getpid()] - before > len(touched) // 2


def test_memory_that_was_given_back_shows_in_the_high_water_mark():
    group = [os.getpgrp()]
    touched = b"x" * (64 << 20)
    in_use = memory_bytes_of(group)[os.getpid()]
    del touched
    assert high_water_bytes_of(group) > in_use - (4 << 20)  # the kernel counts pages in batches
    assert memory_bytes_of(group)[os.getpid()] < in_use - (32 << 20)


def test_a_group_that_does_not_exist_has_nothing():
    assert memory_bytes_of([2**30]) == {}


def test_command_line_is_split_into_its_arguments():
    assert "python" in command_of(os.getpid())[0]
