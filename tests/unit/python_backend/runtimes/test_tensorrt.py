"""The TensorRT runtime on an engine without a GPU: bindings, profiles, CUDA graphs, and what it refuses.

That a real engine computes the same is for `make test-gpu`.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import sys

import fake_cupy
import fake_tensorrt
import numpy as np
import pytest
from fake_cupy import TRANSFERS, Stream

from python_backend.config import EngineConfig
from python_backend.errors import BundleError, EngineError
from python_backend.kv_cache import KVCache
from python_backend.loading import load_engine, load_runtime
from python_backend.runtimes.tensorrt_profile import Device, Staging
from python_backend.sampling_params import SamplingParams
from python_backend.vlm import VLM
from tests.tiny.conversations import CONVERSATIONS
from tests.tiny.shapes import TIED

CONFIG = EngineConfig(max_num_seqs=4, max_num_batched_tokens=64)
GREEDY = SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True)
SAMPLED = {
    "greedy": GREEDY,
    "seeded": SamplingParams(seed=3, max_tokens=10, ignore_eos=True, n=2),
    "cuts": SamplingParams(seed=4, top_p=0.9, min_p=0.01, logprobs=3, max_tokens=10),
    "penalties": SamplingParams(
        seed=5,
        top_k=20,
        repetition_penalty=1.3,
        frequency_penalty=0.4,
        presence_penalty=0.2,
        logit_bias={7: 4.0},
        min_tokens=8,
        max_tokens=10,
        logprobs=0,
    ),
}
DECODE, PREFILL = ("decoder", 0), ("decoder", 1)


@pytest.fixture
def model(for_gpu):
    """The usual tiny model as if it had been built for a GPU."""
    return for_gpu(TIED.name)


def _tokens(generations):
    return [[list(choice.token_ids) for choice in g.choices] for g in generations]


def _logprobs(generations):
    """Of every token and of what was likelier, one after another."""
    entries = [e for g in generations for c in g.choices for e in c.logprobs or ()]
    return [x["logprob"] for entry in entries for x in (entry, *entry["top_logprobs"])]


@pytest.mark.parametrize("name", [TIED.name, "tiny-mllama"])
def test_answers_equal_those_of_onnx_runtime(tiny_models, for_gpu, trt, name):
    conversations = list(CONVERSATIONS.values())
    answers = []
    for folder in (tiny_models(name).model.folder, for_gpu(name).folder):
        with VLM(folder, CONFIG) as vlm:
            answers.append({k: vlm.generate(conversations, p) for k, p in SAMPLED.items()})
    for kind in SAMPLED:
        expected, actual = (a[kind] for a in answers)
        assert _tokens(actual) == _tokens(expected)
        assert _logprobs(actual) == pytest.approx(_logprobs(expected))
    assert trt.computed[DECODE] > trt.launched[DECODE] > 0
    assert trt.computed[PREFILL] == trt.launched[PREFILL] > 0
    assert trt.computed["vision_encoder", 0] > 0


# --- CUDA graphs -----------------------------------------------------------------------------------


def test_steps_are_replayed_once_their_number_of_rows_was_seen(model, trt):
    conversations = list(CONVERSATIONS.values())[:3]
    # With it the last token of a prompt that comes again is a step of one row too, wherever the row is.
    config = dataclasses.replace(CONFIG, prefix_cache=False)
    with VLM(model.folder, config) as vlm:
        first = vlm.generate(conversations, GREEDY)
        assert trt.launched[DECODE] == trt.captured[DECODE] == 3  # one, two and three rows
        computed = trt.computed[DECODE]
        again = vlm.generate(conversations, GREEDY)
        alone = vlm.generate(conversations[:1], GREEDY)
    assert trt.launched[DECODE] == trt.captured[DECODE] == trt.contexts[DECODE] == 3
    assert trt.computed[DECODE] == 2 * computed + GREEDY.max_tokens - 1
    assert _tokens(again) == _tokens(first)
    assert _tokens(alone) == _tokens(first)[:1]


def test_no_more_graphs_are_kept_than_asked_for(model, trt):
    conversations = list(CONVERSATIONS.values())[:4]
    with VLM(model.folder, CONFIG) as vlm:
        expected = vlm.generate(conversations, GREEDY)
    trt.contexts.clear()
    config = EngineConfig(max_num_seqs=4, max_num_batched_tokens=64, max_cuda_graphs=2)
    with VLM(model.folder, config) as vlm:
        for _ in range(2):
            assert _tokens(vlm.generate(conversations, GREEDY)) == _tokens(expected)
    assert trt.contexts[DECODE] == 3  # two with a graph, one that gets the next


def test_without_graphs_every_step_is_launched(model, trt):
    config = EngineConfig(max_num_seqs=4, max_cuda_graphs=0)
    with VLM(model.folder, config) as vlm:
        vlm.generate([CONVERSATIONS["wide"]], GREEDY)
    assert trt.computed[DECODE] == trt.launched[DECODE] == GREEDY.max_tokens - 1
    assert not trt.captured


@pytest.mark.parametrize("refuses", ["CUDA", "TensorRT-RTX"])
def test_a_refused_capture_is_said_once_and_steps_are_launched(model, trt, caplog, refuses):
    conversations = list(CONVERSATIONS.values())[:2]
    with VLM(model.folder, CONFIG) as vlm:
        expected = vlm.generate(conversations, GREEDY)
    trt.computed.clear()
    trt.launched.clear()
    Stream.refuses_capture, trt.is_capturable = refuses == "CUDA", refuses != "TensorRT-RTX"
    with VLM(model.folder, CONFIG) as vlm:
        assert _tokens(vlm.generate(conversations, GREEDY)) == _tokens(expected)
    assert trt.computed[DECODE] == trt.launched[DECODE] > 2
    (record,) = caplog.records
    assert re.search(r"no more CUDA graphs of graph decoder.*(cudaError|captured)", record.message)


def test_when_the_gpu_is_full_a_graph_gives_its_context_up(model, trt, caplog):
    conversations = list(CONVERSATIONS.values())[:3]
    with VLM(model.folder, CONFIG) as vlm:
        expected = vlm.generate(conversations, GREEDY)
    trt.contexts.clear()
    with VLM(model.folder, CONFIG) as vlm:
        trt.max_contexts = trt.contexts.total() + 1
        for _ in range(2):
            assert _tokens(vlm.generate(conversations, GREEDY)) == _tokens(expected)
    assert trt.contexts[DECODE] == 2
    (record,) = caplog.records
    assert "does not fit the GPU" in record.message


def _feeds(runtime, rows=2):
    return {
        "input_ids": np.arange(rows)[:, None] + 5,
        "image_index": np.full((rows, 1), -1),
        "image_embeds": runtime.zeros((1, runtime.spec.input("image_embeds").shape[1]), "float32"),
        "position_ids": np.zeros((3, rows, 1), np.int64),
        "write_indices": np.zeros(rows, np.int64),
        "kv_lengths": np.ones(rows, np.int32),
        "logits_index": np.zeros((rows, 1), np.int64),
    }


def test_another_address_or_another_cache_is_another_graph(model, trt):
    with load_runtime(model, model.manifest.decoder, CONFIG) as runtime:
        feeds = _feeds(runtime)
        caches = [KVCache(runtime.spec, 4, runtime.zeros) for _ in range(2)]
        expected = runtime.run(feeds, caches[0].view(0, 2))["logits"].get()
        ids, feeds["input_ids"] = feeds["input_ids"], feeds["input_ids"] + 9
        other = runtime.run(feeds, caches[0].view(0, 2))["logits"].get()
        assert trt.launched[DECODE] == 1
        assert not np.allclose(other, expected)
        feeds["input_ids"] = ids
        feeds["image_embeds"] = _feeds(runtime)["image_embeds"]
        runtime.run(feeds, caches[0].view(0, 2))
        assert trt.launched[DECODE] == 2
        actual = runtime.run(feeds, caches[1].view(0, 2))["logits"].get()
        assert trt.launched[DECODE] == 3
        np.testing.assert_array_equal(actual, expected)


def test_what_is_on_its_way_to_the_device_is_not_overwritten(trt):
    cupy, cupyx = sys.modules["cupy"], sys.modules["cupyx"]
    stream = cupy.cuda.Stream(non_blocking=True)
    device = Device(trt, True, cupy, cupyx, stream, cupy.empty(0, np.uint8), None)
    staging, arrived = Staging(device), []
    for value in (1, 2):
        on_device = staging.place({"a": np.full(100, value), "b": np.full(3, -value, np.int32)})
        stream.put(lambda parts=on_device: arrived.append([p._memory[0] for p in parts.values()]))
    stream.synchronize()
    assert arrived == [[1, -1], [2, -2]]


# --- what crosses ----------------------------------------------------------------------------------


@pytest.mark.parametrize("params", [GREEDY, SAMPLED["seeded"], SAMPLED["penalties"]])
def test_only_token_ids_and_what_was_asked_for_come_back(model, params):
    with VLM(model.folder, CONFIG) as vlm:
        (generation,) = vlm.generate([CONVERSATIONS["three"]], params)
    num_steps = max(len(choice.token_ids) for choice in generation.choices)
    logprob = [] if params.logprobs is None else [8]
    assert TRANSFERS.to_host == [8 * params.n, *logprob] * num_steps


def test_a_greedy_step_sends_one_copy_and_no_image_embeddings(model):
    with VLM(model.folder, CONFIG) as vlm:
        vlm.generate([CONVERSATIONS["wide"]], GREEDY)
    sizes = TRANSFERS.to_device[-(GREEDY.max_tokens - 1) :]
    num_fed = len(model.manifest.decoder.spec.fed_inputs) - 1  # the embeddings are there already
    assert sizes == [num_fed * fake_tensorrt.ALIGNMENT] * (GREEDY.max_tokens - 1)


# --- what is refused -------------------------------------------------------------------------------


def test_inputs_outside_every_profile_are_refused_with_what_to_do(model):
    with load_runtime(model, model.manifest.decoder, CONFIG) as runtime:
        rows = 5  # one more than the engine was built for
        with pytest.raises(EngineError, match=r"input_ids \[5, 1\].*--max-seqs"):
            runtime.run(_feeds(runtime, rows))


def test_arrays_on_the_device_are_checked_like_the_hosts(model):
    with load_runtime(model, model.manifest.decoder, CONFIG) as runtime:
        feeds = {**_feeds(runtime), "image_embeds": runtime.zeros((1, 3), "float32")}
        with pytest.raises(EngineError, match=r"image_embeds has shape \(1, 3\)"):
            runtime.run(feeds)


def test_an_engine_of_another_version_is_refused_with_tensorrts_reason(model):
    model.path(model.manifest.decoder, "sm89").write_bytes(b"an engine of yesterday")
    with pytest.raises(BundleError, match=r"Serialization assertion failed.*build the model again"):
        load_engine(model, CONFIG)


def test_an_engine_without_a_tensor_of_its_manifest_is_refused(model):
    path = model.path(model.manifest.decoder, "sm89")
    content = json.loads(path.read_text())
    content["spec"]["inputs"] = content["spec"]["inputs"][1:]
    path.write_text(json.dumps(content))
    with pytest.raises(BundleError, match="does not have the tensor input_ids"):
        load_engine(model, CONFIG)


def test_a_gpu_that_it_was_not_built_for_is_named(model, nvidia_gpus):
    nvidia_gpus("9.0")
    with pytest.raises(BundleError, match=r"built for sm89 and not for sm90: .*--gpu sm90"):
        load_engine(model, CONFIG)


def test_a_machine_without_a_gpu_is_told_so(model, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BundleError, match="nvidia-smi finds none"):
        load_engine(model, CONFIG)


@pytest.mark.parametrize(
    ("module", "message"),
    [("tensorrt_rtx", "tensorrt_rtx is not installed"), ("cupy", "need CuPy")],
)
def test_a_missing_library_is_named(model, monkeypatch, module, message):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
    with pytest.raises(BundleError, match=message):
        load_engine(model, CONFIG)


def test_a_closed_engine_says_so(model):
    runtime = load_runtime(model, model.manifest.vision_encoder, CONFIG)
    runtime.close()
    runtime.close()
    with pytest.raises(EngineError, match="closed"):
        runtime._run({}, None)


def test_bfloat16_caches_are_kept_as_bits(model):
    with load_runtime(model, model.manifest.decoder, CONFIG) as runtime:
        assert runtime.zeros((2, 3), "bfloat16").dtype == np.uint16
        assert runtime.zeros((2, 3), "float16").dtype == np.float16


# --- the fakes -------------------------------------------------------------------------------------

CLASSES = (
    fake_tensorrt.Runtime,
    fake_tensorrt.IRuntimeConfig,
    fake_tensorrt.ICudaEngine,
    fake_tensorrt.IExecutionContext,
    fake_tensorrt.ILogger,
    fake_tensorrt.TensorIOMode,
    fake_tensorrt.DataType,
    fake_tensorrt.ExecutionContextAllocationStrategy,
    fake_tensorrt.DynamicShapesKernelSpecializationStrategy,
)


@pytest.mark.parametrize("fake", CLASSES)
def test_the_fake_has_no_name_or_parameter_that_tensorrt_rtx_lacks(fake):
    """What the runtime uses is in the fake, or these tests would fail; so it is in TensorRT-RTX."""
    trt = pytest.importorskip("tensorrt_rtx_bindings")
    real = getattr(trt, fake.__name__)
    names = [name for name in vars(fake) if not name.startswith("_")]
    names += vars(fake()) if fake is fake_tensorrt.IRuntimeConfig else ()
    for name in names:
        assert hasattr(real, name), name
        if callable(vars(fake).get(name)):
            code = vars(fake)[name].__code__
            parameters = code.co_varnames[1 : code.co_argcount]
            signatures = re.findall(
                rf"^(?:\d+\. )?{name}\((.*)\) ->", getattr(real, name).__doc__, re.M
            )
            accepted = [re.findall(r"(?:^|, )(\w+): ", s)[1:] for s in signatures]
            assert list(parameters) in accepted, (name, accepted)


def test_a_device_array_does_not_become_numpys_in_passing(trt):
    array = importlib.import_module("cupy").zeros(3, np.float32)
    for convert in (np.asarray, np.exp, float, list, bool):
        with pytest.raises((TypeError, AssertionError)):
            convert(array)
    assert fake_cupy.TRANSFERS.to_host == []
