from __future__ import annotations

import json

import pytest

from benchmarks.build_cost import Build, Cost, cost_rows, target_rows
from benchmarks.checkpoint import Preset, _shards, _write_weights, hub_config
from builders.checkpoint import Checkpoint

SHAPE = Preset(
    "tiny",
    {
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 512,
        "tie_word_embeddings": False,
    },
    {
        "depth": 2,
        "hidden_size": 64,
        "num_heads": 2,
        "intermediate_size": 64,
        "fullatt_block_indexes": [1],
    },
)
GRAPHS = Build(engine="onnxruntime", precision="int4", max_seconds=60, max_memory_share=1.5)


def _cost(**changes):
    values = {
        "seconds": 30.0,
        "engine_seconds": 0.0,
        "peak_bytes": 1_400_000_000,
        "written_bytes": 10**9,
        "foreign_cpu_share": 0.01,
    }
    return Cost(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "verdicts"),
    [
        ({}, ["met", "met"]),
        ({"seconds": 60.5}, ["NOT MET", "met"]),
        ({"peak_bytes": 1_600_000_000}, ["met", "NOT MET"]),
    ],
)
def test_promises_of_time_and_of_memory_over_the_checkpoint_are_checked(changes, verdicts):
    rows = target_rows([(GRAPHS, _cost(**changes))], checkpoint_bytes=10**9)
    assert [row[-1] for row in rows] == verdicts


def test_a_promise_of_memory_is_checked_in_bytes():
    build = Build(engine="onnxruntime", precision="int4", max_memory_bytes=8 * 10**9)
    for peak_bytes, verdict in ((7_990_000_000, "met"), (8_010_000_000, "NOT MET")):
        (row,) = target_rows([(build, _cost(peak_bytes=peak_bytes))], checkpoint_bytes=16 * 10**9)
        assert row[1:] == ("at most 8 GB", f"{peak_bytes / 1e9:.2f} GB", verdict)


def test_a_time_that_others_disturbed_is_marked():
    build = Build(engine="tensorrt_rtx", precision="bf16")
    costs = [(build, _cost(engine_seconds=20.0, foreign_cpu_share=0.5))]
    (row,) = cost_rows(costs, checkpoint_bytes=10**9)
    assert row[0] == "tensorrt_rtx bf16 for sm89"
    assert row[2] == "20"
    assert row[-1] == "**50%**"


def test_a_shard_holds_what_fits_and_at_least_one_tensor():
    parameters = [("a", (10,)), ("b", (10,)), ("c", (100,)), ("d", (5,))]
    names = [[name for name, _ in shard] for shard in _shards(parameters, 40)]
    assert names == [["a", "b"], ["c"], ["d"]]


def test_a_checkpoint_in_shards_has_the_same_weights(tmp_path):
    pytest.importorskip("torch")
    config = hub_config(SHAPE)
    assert config["rope_scaling"]["mrope_section"] == [8, 12, 12]
    folders = tmp_path / "whole", tmp_path / "sharded"
    for folder, shard_bytes in zip(folders, (2**30, 100_000), strict=True):
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        _write_weights(folder, 0, shard_bytes)
    whole, sharded = map(Checkpoint, folders)
    index = json.loads((folders[1] / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(index) == set(whole) == set(sharded)
    assert "lm_head.weight" in index
    assert len(set(index.values())) > 2
    assert {name: sharded[name].path.name for name in sharded} == index
    for name in whole:
        assert whole[name].array().tobytes() == sharded[name].array().tobytes()
