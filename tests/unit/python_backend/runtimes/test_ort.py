"""ONNX Runtime: what it refuses, and that the cache is updated in place."""

from __future__ import annotations

import dataclasses
import os
import shutil
import weakref
from pathlib import Path

import numpy as np
import onnx
import pytest

from python_backend.errors import BundleError, EngineError
from python_backend.kv_cache import KVCache
from python_backend.runtimes.ort import OrtRuntime
from python_backend.spec import GraphSpec, TensorSpec


@pytest.fixture(scope="module")
def decoder(tied):
    graph = tied.model.manifest.decoder
    with OrtRuntime(graph.spec, tied.model.path(graph), num_threads=1) as runtime:
        yield runtime


def _feeds(spec, rows, start, tokens):
    hidden = spec.input("image_embeds").shape[1]
    tokens = np.asarray(tokens)
    num_tokens = tokens.shape[1]
    positions = np.broadcast_to(np.arange(start, start + num_tokens), (3, rows, num_tokens))
    return {
        "input_ids": tokens,
        "image_index": np.full((rows, num_tokens), -1),
        "image_embeds": np.zeros((1, hidden), np.float32),
        "position_ids": np.ascontiguousarray(positions),
        "write_indices": np.full(rows, start),
        "kv_lengths": np.full(rows, start + num_tokens, np.int32),
        "logits_index": np.full((rows, 1), num_tokens - 1),
    }


TOKENS = np.array([[5, 17, 250, 99, 3, 120]])


def test_step_writes_its_positions_of_its_rows_and_nothing_else(decoder):
    cache = KVCache(decoder.spec, 3)
    everything = cache.view(0, 3).tensors
    for array in everything.values():
        array[:] = 7
    decoder.run(_feeds(decoder.spec, 1, 2, TOKENS), cache.view(1, 2))
    for array in everything.values():
        untouched = np.ones(array.shape, bool)
        untouched[1, :, 2:8] = False
        assert (array[untouched] == 7).all()
        assert (array[~untouched] != 7).all()


def test_what_was_fed_is_not_kept(decoder):
    """A request's image embeddings stayed in memory until the next prompt came into its row."""
    view = KVCache(decoder.spec, 1).view(0, 1)
    feeds = _feeds(decoder.spec, 1, 0, TOKENS)
    freed = weakref.ref(feeds["image_embeds"])
    decoder.run(feeds, view)
    del feeds
    assert freed() is None


def test_prompt_in_chunks_gives_the_logits_of_the_whole(decoder):
    whole = KVCache(decoder.spec, 1).view(0, 1)
    expected = decoder.run(_feeds(decoder.spec, 1, 0, TOKENS), whole)["logits"].copy()
    chunks = KVCache(decoder.spec, 1).view(0, 1)
    for start, stop in ((0, 1), (1, 4), (4, 6)):
        logits = decoder.run(_feeds(decoder.spec, 1, start, TOKENS[:, start:stop]), chunks)[
            "logits"
        ]
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_rows_do_not_see_each_other_nor_what_lies_behind_their_length(decoder):
    def last_logits(rows, row, garbage):
        cache = KVCache(decoder.spec, rows)
        for array in cache.view(0, rows).tensors.values():
            array[:] = garbage
        rng = np.random.default_rng(1)
        tokens = rng.integers(0, 300, (rows, 6))
        tokens[row] = TOKENS
        return decoder.run(_feeds(decoder.spec, rows, 0, tokens), cache.view(0, rows))["logits"][
            row
        ]

    alone = last_logits(1, 0, 0.0)
    np.testing.assert_allclose(last_logits(4, 2, 1e3), alone, atol=1e-5)


def test_feeds_that_do_not_fit_are_refused_before_the_engine_sees_them(decoder):
    feeds = _feeds(decoder.spec, 1, 0, TOKENS)
    del feeds["kv_lengths"]
    with pytest.raises(EngineError, match="takes"):
        decoder.run(feeds, KVCache(decoder.spec, 1).view(0, 1))


def test_closed_engine_refuses_to_run_and_closes_twice(tied):
    graph = tied.model.manifest.decoder
    runtime = OrtRuntime(graph.spec, tied.model.path(graph), num_threads=1)
    runtime.close()
    runtime.close()
    with pytest.raises(EngineError, match="closed"):
        runtime.run(_feeds(graph.spec, 1, 0, TOKENS), KVCache(graph.spec, 1).view(0, 1))


def test_file_that_is_no_graph_is_refused(tied, tmp_path):
    (tmp_path / "decoder.onnx").write_bytes(b"no graph")
    with pytest.raises(BundleError, match="rebuild the model"):
        OrtRuntime(tied.model.manifest.decoder.spec, tmp_path / "decoder.onnx")


def test_graph_without_its_weights_is_refused(tied, tmp_path):
    graph = tied.model.manifest.decoder
    shutil.copyfile(tied.model.path(graph), tmp_path / "decoder.onnx")
    with pytest.raises(BundleError, match="does not load"):
        OrtRuntime(graph.spec, tmp_path / "decoder.onnx")


def test_pages_of_the_weights_file_are_given_back_once_they_are_packed(tied, tmp_path):
    graph = tied.model.manifest.decoder
    path = tied.model.path(graph)
    for name in (path.name, f"{path.name}.data"):
        shutil.copyfile(path.with_name(name), tmp_path / name)
    with OrtRuntime(graph.spec, tmp_path / path.name, num_threads=1) as runtime:

        def resident():
            smaps = Path("/proc/self/smaps").read_text(encoding="utf-8")
            parts = smaps.split(str(tmp_path / f"{path.name}.data"))[1:]
            assert parts, "the embedding table, which nothing packs, stays mapped"
            return [part.split("\nRss:")[1].split()[0] for part in parts]

        assert set(resident()) == {"0"}
        cache = KVCache(graph.spec, 1).view(0, 1)
        first = runtime.run(_feeds(graph.spec, 1, 0, TOKENS), cache)["logits"].copy()
        assert set(resident()) == {"0"}
        # What is needed of them comes back.
        again = runtime.run(_feeds(graph.spec, 1, 0, TOKENS), cache)["logits"]
        np.testing.assert_array_equal(again, first)


@pytest.mark.parametrize(("num_fed", "is_kept"), [(1, True), (2, False)])
def test_memory_of_a_run_is_kept_unless_it_is_fed_too_much(tmp_path, num_fed, is_kept):
    """What it computes takes 200 MB for each number that is fed."""
    helper, numbers = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node("Neg", ["x"], ["small"]),  # what a session allocates first it never frees
        helper.make_node("Expand", ["small", "shape"], ["wide"]),
        helper.make_node("ReduceMax", ["wide"], ["y"], keepdims=1),
    ]
    x, y = (
        helper.make_tensor_value_info(*io)
        for io in (("x", numbers, ["N", 1]), ("y", numbers, [1, 1]))
    )
    shape = onnx.numpy_helper.from_array(np.array([1, 50_000_000]), "shape")
    opset, path = helper.make_opsetid("", 21), tmp_path / "wide.onnx"
    graph = helper.make_graph(nodes, "wide", [x], [y], [shape])
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), path)
    spec = GraphSpec(
        "wide",
        (TensorSpec("x", "float32", ("N", 1)),),
        (TensorSpec("y", "float32", (1, 1)),),
        {},
    )
    with OrtRuntime(spec, path, max_kept_bytes=4) as runtime:
        before = _resident_bytes()
        runtime.run({"x": np.ones((num_fed, 1), np.float32)})
        assert (_resident_bytes() - before > 100e6) == is_kept


def _resident_bytes():
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_session_leaves_alone_what_another_one_of_the_same_file_has_mapped(tied):
    graph = tied.model.manifest.decoder
    path = tied.model.path(graph)
    first = OrtRuntime(graph.spec, path, num_threads=1)
    with OrtRuntime(graph.spec, path, num_threads=1) as second:
        first.close()
        # Takes the addresses that the first one's mapping had, as the system hands them out again.
        blocks = [np.ones(n) for n in (10**4, 10**5, 10**6) for _ in range(20)]
        second.run(_feeds(graph.spec, 1, 0, TOKENS), KVCache(graph.spec, 1).view(0, 1))
        assert all((block == 1).all() for block in blocks)


def _rename(spec, old, new):
    inputs = tuple(dataclasses.replace(t, name=new) if t.name == old else t for t in spec.inputs)
    return dataclasses.replace(spec, inputs=inputs)


def _reshape(spec):
    last = dataclasses.replace(spec.inputs[-1], shape=("B", 2, 33, 32))
    return dataclasses.replace(spec, inputs=(*spec.inputs[:-1], last))


def _retype(spec):
    first = dataclasses.replace(spec.inputs[0], dtype="int32")
    return dataclasses.replace(spec, inputs=(first, *spec.inputs[1:]))


def _drop(spec):
    return dataclasses.replace(spec, inputs=spec.inputs[:-1])


@pytest.mark.parametrize(
    "change", [lambda spec: _rename(spec, "input_ids", "tokens"), _reshape, _retype, _drop]
)
def test_file_that_differs_from_its_manifest_is_refused(tied, change):
    graph = tied.model.manifest.decoder
    with pytest.raises(BundleError, match="rebuild the model"):
        OrtRuntime(change(graph.spec), tied.model.path(graph))
