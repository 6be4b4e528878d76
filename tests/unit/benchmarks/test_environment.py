from __future__ import annotations

from dataclasses import replace

from tests.unit.benchmarks.examples import ENVIRONMENT


def test_files_are_named_after_what_computes():
    assert ENVIRONMENT.slug == "some-cpu-2-cores"
    environment = replace(ENVIRONMENT, gpu="NVIDIA L4 (24 GB, driver 580.1)")
    assert environment.slug == "nvidia-l4"
    assert "NVIDIA L4 (24 GB, driver 580.1); Some CPU" in environment.in_words
