"""What stays on the GPU: the cache, CUDA graphs, sampling, and embeddings between the stages."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import re
import time

import fake_cupy
import numpy as np
import pytest

from python_backend.arrays import to_host
from python_backend.config import EngineConfig
from python_backend.kv_cache import KVCache
from python_backend.loading import load_runtime
from python_backend.sampler import Sampler
from python_backend.sampler_state import SamplerState
from python_backend.sampling_params import Grammar, SamplingParams
from python_backend.vlm import VLM
from tests.gpu.conftest import MAX_SEQS
from tests.tiny.pictures import png
from tests.unit.model_repository.test_stages import Ensemble, details

QUESTIONS = ["Hello", "What can you do?", "Thanks", "How are you?", "What is a circle?"]
CONVERSATIONS = [[{"role": "user", "content": question}] for question in QUESTIONS]
PICTURE = [
    {
        "role": "user",
        "content": [
            {"type": "image", "image": png(64, 64)},
            {"type": "text", "text": "What do you see?"},
        ],
    }
]
GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)


def _tokens(generations):
    return [list(generation.token_ids) for generation in generations]


def test_what_the_fakes_offer_is_in_cupy():
    pytest.importorskip("cupy")
    for owner, used in fake_cupy.names_used().items():
        module, *rest = owner.split(".")
        real = functools.reduce(getattr, rest, importlib.import_module(module))
        if owner == "cupy.cuda.Stream":
            real = real()  # its handle belongs to the object
        missing = [name for name in used if not hasattr(real, name)]
        assert missing == [], owner


@pytest.mark.parametrize(
    "params",
    [
        GREEDY,
        SamplingParams(seed=1, max_tokens=24, ignore_eos=True),
        SamplingParams(seed=2, top_p=0.9, repetition_penalty=1.2, max_tokens=24, logprobs=2),
    ],
)
def test_replayed_steps_give_the_tokens_of_launched_ones(model, params, caplog):
    """TensorRT-RTX takes other kernels without graphs: there, look at the logits before the graphs."""
    conversations = [*CONVERSATIONS, PICTURE]
    answers = []
    for max_graphs in (0, 64):
        with VLM(model.folder, EngineConfig(max_cuda_graphs=max_graphs)) as vlm:
            # Twice, so that steps of every number of rows are replayed with other requests in them.
            answers.append([_tokens(vlm.generate(conversations, params)) for _ in range(2)])
    assert answers[0] == answers[1]
    assert not [record for record in caplog.records if "CUDA graphs" in record.message]


def test_a_step_writes_its_row_of_the_cache_in_place(model):
    """The outputs of the cache are its inputs, and no row but the one that is bound changes."""
    with load_runtime(model, model.manifest.decoder, EngineConfig()) as runtime:
        spec = runtime.spec
        cache = KVCache(spec, 3, runtime.zeros, runtime.min_rows)
        images = runtime.zeros((1, int(spec.input("image_embeds").shape[1])), "float32")
        has_axes = len(spec.input("position_ids").shape) == 3
        positions = np.arange(4)[None]
        feeds = {
            "input_ids": np.array([[5, 6, 7, 8]]),
            "image_index": np.full((1, 4), -1),
            "image_embeds": images,
            "position_ids": np.repeat(positions[None], 3, axis=0) if has_axes else positions,
            "write_indices": np.array([0]),
            "kv_lengths": np.array([4], np.int32),
            "logits_index": np.array([[3]]),
        }
        runtime.run(feeds, cache.view(1, 2))
        for array in cache.view(0, 3).tensors.values():
            rows = to_host(array)
            assert rows[1, :, :4].any()
            assert not rows[1, :, 4:].any()
            assert not rows[[0, 2]].any()


def test_a_cancelled_answer_leaves_the_others_as_they_were(model):
    with VLM(model.folder) as vlm:
        expected = _tokens(vlm.generate(CONVERSATIONS, GREEDY))
        engine = vlm._engine
        requests = [vlm._prepare(conversation, GREEDY) for conversation in CONVERSATIONS]
        tokens = {request.request_id: [] for request in requests}
        for request in requests:
            engine.add_request(request)
        num_steps = 0
        while engine.has_unfinished:
            for output in engine.step():
                tokens[output.request_id] += output.token_ids
            num_steps += 1
            if num_steps == len(requests) * 2 + 4:  # all of them decode
                assert engine.abort(requests[1].request_id)
    left = [i for i in range(len(requests)) if i != 1]
    assert [tokens[requests[i].request_id] for i in left] == [expected[i] for i in left]
    assert len(tokens[requests[1].request_id]) < GREEDY.max_tokens


def test_embeddings_go_from_stage_to_stage_on_the_gpu(model):
    stages = Ensemble(model.folder.parent, model.folder.name)
    with VLM(model.folder) as vlm:
        (expected,) = _tokens(vlm.generate([PICTURE], GREEDY))
    prepared = stages.prepare(PICTURE)
    (embeds,) = stages.encode([prepared])
    (tensor,) = embeds.output_tensors()
    assert not tensor.is_cpu()
    sampling = {"temperature": 0, "max_tokens": GREEDY.max_tokens, "ignore_eos": True}
    running = stages.decode(prepared, embeds, sampling)
    tensor._array[...] = np.nan  # Triton's memory is its own again when `execute` has returned
    assert [token for part in details(running) for token in part["token_ids"]] == expected
    cancel = stages.start(PICTURE, {**sampling, "max_tokens": 200}, "r1")
    stages.cancel("r1")
    assert cancel.sender.finished.wait(30)
    stages.decoder.finalize()
    stages.encoder.finalize()


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.0),
        SamplingParams(seed=1),
        SamplingParams(seed=2, top_p=0.9, min_p=0.001),
        SamplingParams(seed=3, top_k=40, repetition_penalty=1.2, logit_bias={7: 2.0}),
        SamplingParams(seed=4, top_k=300, top_p=0.7, min_p=0.01, temperature=0.6),
        SamplingParams(seed=5, top_p=0.99, temperature=1.5),
        SamplingParams(temperature=0.0, min_tokens=100, stop_token_ids=(5, 6), logprobs=20),
        SamplingParams(
            seed=6,
            top_p=0.5,
            repetition_penalty=1.3,
            frequency_penalty=0.4,
            presence_penalty=0.2,
            logit_bias={7: 4.0, 11: -3.0},
            logprobs=2,
        ),
    ],
)
def test_the_device_samples_what_the_host_samples(params):
    """Up to rounding: a few tokens in a thousand may fall on the other side of a sum."""
    cupy = pytest.importorskip("cupy")
    rng, num_rows, vocab_size = np.random.default_rng(0), 8, 50_000
    host, device = (
        [SamplerState(params, [1, 2], vocab_size, i, (), module) for i in range(num_rows)]
        for module in (np, cupy)
    )
    num_equal, num_steps, sampler = 0, 125, Sampler()
    for step in range(num_steps):
        logits = rng.normal(0, 2, (num_rows, vocab_size)).astype(np.float32)
        if step % 2:
            logits = np.round(logits)  # many are equal, and of equal ones the lower id goes first
        on_device = cupy.asarray(logits)
        expected = sampler.sample(logits, host)
        actual = sampler.sample(on_device, device)
        for one, other, *states in zip(expected, actual, host, device, strict=True):
            num_equal += one.token_id == other.token_id
            if one.token_id == other.token_id:
                assert other.logprob == pytest.approx(one.logprob, abs=1e-5)
            for mine, theirs in zip(one.top_logprobs or (), other.top_logprobs or (), strict=True):
                assert theirs == pytest.approx(mine, abs=1e-5)
            for state in states:
                state.append(one.token_id)
    assert num_equal >= 0.995 * num_steps * num_rows


@pytest.mark.parametrize("grammar", [Grammar("regex", "[a-z]{8}"), Grammar("choice", '["no"]')])
def test_a_grammar_is_followed(model, grammar):
    params = SamplingParams(seed=1, max_tokens=40, grammar=grammar)
    with VLM(model.folder) as vlm:
        answers = vlm.generate([*CONVERSATIONS, PICTURE], params)
    pattern = "no" if grammar.kind == "choice" else grammar.text
    assert [answer.text for answer in answers if not re.fullmatch(pattern, answer.text)] == []


SAMPLED = {
    "greedy": SamplingParams(temperature=0.0),
    "sampled": SamplingParams(seed=1),
    "top_p": SamplingParams(seed=1, top_p=0.9),
    "top_k_top_p": SamplingParams(seed=1, top_k=20, top_p=0.8),
    "repetition_penalty": SamplingParams(temperature=0.0, repetition_penalty=1.05),
    "frequency_penalty": SamplingParams(temperature=0.0, frequency_penalty=0.2),
    "logit_bias": SamplingParams(temperature=0.0, logit_bias={7: 2.0}),
    "logprobs": SamplingParams(temperature=0.0, logprobs=5),
}


@pytest.mark.parametrize("kind", SAMPLED)
def test_what_a_sampling_step_takes(kind, record_property, capsys):
    """A measurement, with Qwen's vocabulary: it fails only if a token is none."""
    cupy = pytest.importorskip("cupy")
    params, sampler, vocab_size, num_steps, milliseconds = SAMPLED[kind], Sampler(), 151_936, 50, {}
    prompt = np.random.default_rng(1).integers(0, vocab_size, 400).tolist()
    for num_rows in (1, 8, 64):
        states = [SamplerState(params, prompt, vocab_size, i, (), cupy) for i in range(num_rows)]
        logits = cupy.asarray(
            np.random.default_rng(0).normal(0, 2, (num_rows, vocab_size)).astype(np.float32)
        )
        sampler.sample(logits, states)  # compiles
        start = time.perf_counter()
        for _ in range(num_steps):
            choices = sampler.sample(logits, states)
            assert all(0 <= choice.token_id < vocab_size for choice in choices)
            for state, choice in zip(states, choices, strict=True):
                state.append(choice.token_id)
        seconds = time.perf_counter() - start
        milliseconds[f"rows={num_rows}"] = round(1000 * seconds / num_steps, 3)
    record_property("milliseconds_per_step", milliseconds)
    with capsys.disabled():
        print(f"\nsampling, {kind}, ms per step: {json.dumps(milliseconds)}")  # noqa: T201


@pytest.mark.parametrize("kernels", ["IdleKernels", "BusyKernels"])
@pytest.mark.parametrize("kind", ["greedy", "repetition_penalty"])
def test_what_a_step_takes(stand_in, kernels, kind, record_property, capsys):
    """A measurement, with engines that compute nothing in no time and in two milliseconds."""
    model, num_steps, milliseconds = stand_in(kernels), 25, {}
    params = dataclasses.replace(SAMPLED[kind], max_tokens=100, ignore_eos=True)
    with VLM(model.folder, EngineConfig(max_num_seqs=MAX_SEQS, prefix_cache=False)) as vlm:
        engine = vlm._engine
        for num_rows in (1, 8, MAX_SEQS):
            for conversation in (CONVERSATIONS * MAX_SEQS)[:num_rows]:
                engine.add_request(vlm._prepare(conversation, params))
            while engine.scheduler.num_waiting:
                engine.step()
            for _ in range(5):  # the last prompt, and what captures
                engine.step()
            start = time.perf_counter()
            num_tokens = sum(len(engine.step()) for _ in range(num_steps))
            milliseconds[f"rows={num_rows}"] = round(
                1000 * (time.perf_counter() - start) / num_steps, 3
            )
            assert num_tokens == num_rows * num_steps
            while engine.has_unfinished:
                engine.step()
    record_property("milliseconds_per_step", milliseconds)
    with capsys.disabled():
        print(f"\n{kernels}, {kind}, ms per step: {json.dumps(milliseconds)}")  # noqa: T201


def test_tokens_per_second_with_and_without_graphs(engines, record_property, capsys):
    """A measurement: it fails only if nothing is generated."""
    speeds, model = {}, engines("bf16")
    for max_graphs in (0, 64):
        with VLM(model.folder, EngineConfig(max_cuda_graphs=max_graphs)) as vlm:
            for num_rows in (1, 8):
                conversations = (CONVERSATIONS * 2)[:num_rows]
                params = SamplingParams(temperature=0.0, max_tokens=128, ignore_eos=True)
                vlm.generate(conversations, params)  # captures
                start = time.perf_counter()
                generations = vlm.generate(conversations, params)
                seconds = time.perf_counter() - start
                num_tokens = sum(len(tokens) for tokens in _tokens(generations))
                speeds[f"rows={num_rows} graphs={max_graphs}"] = round(num_tokens / seconds, 1)
    record_property("tokens_per_second", speeds)
    with capsys.disabled():
        print(f"\ntokens per second, shapes-vl bf16: {json.dumps(speeds)}")  # noqa: T201
    assert all(speeds.values())
