from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.command_line import (
    ROOT,
    CommandLine,
    add_engine,
    add_quick,
    add_results,
    engine_of,
    results_dir,
)

LINE = CommandLine("benchmarks.some", "Measures something.")


def _parse(*argv: str):
    parser = LINE.parser("something")
    add_quick(parser, "less")
    add_engine(parser)
    add_results(parser)
    return parser.parse_args(argv)


def test_figures_of_a_quick_run_are_not_among_the_others():
    assert results_dir(_parse()) == ROOT / "benchmarks" / "results"
    assert results_dir(_parse("--quick")) == ROOT / "build" / "benchmarks"
    assert results_dir(_parse("--quick", "--results", "here")) == Path("here")


def test_the_work_folder_is_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    assert _parse("--work-dir", "work").work_dir == tmp_path / "work"


def test_each_engine_has_its_own_usual_precision():
    assert engine_of(_parse()) == {"engine": "onnxruntime", "precision": "fp32"}
    assert engine_of(_parse("--engine", "tensorrt"))["precision"] == "bf16"
    assert engine_of(_parse("--engine", "tensorrt", "--precision", "fp8"))["precision"] == "fp8"


def test_a_result_tells_the_whole_command():
    assert LINE.start(["--quick"])[1] == "python -m benchmarks.some --quick"
